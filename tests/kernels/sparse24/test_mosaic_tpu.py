"""The TPU kernel, interpreted against float64 and compiled for a chip that is not there."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.kernels.sparse24 import mosaic_tpu, reference, sparse24, unpack
from vit_jax.kernels.sparse24.packed import compress, quantise
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@functools.partial(jax.jit, static_argnums=1)
def packed(kernel, storage):
    """The packed kernel in ``storage`` and its scale, None but for integers."""
    return quantise(*compress(kernel)) if storage == "int8" else (*compress(kernel, storage), None)


def problem(rng, lead, size, out, dtype, storage):
    x = jnp.asarray(rng.standard_normal((*lead, size)), dtype)
    bias = jnp.asarray(rng.standard_normal(out), jnp.float32)
    values, index, scale = packed(rng.standard_normal((size, out)).astype(np.float32) / size**0.5, storage)
    return x, values, index, bias, scale


def expected(x, values, index, bias, scale):
    """As the reference, with the matrix of :func:`unpack`, itself tested against the reference: large shapes."""
    kernel = jax.jit(unpack)(values.astype(x.dtype), index)
    y = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    return y * (1.0 if scale is None else np.asarray(scale, np.float64)) + np.asarray(bias, np.float64)


def run(x, values, index, bias, scale):
    return sparse24(x, values, index, bias, scale=scale, implementation="mosaic_tpu")


def shapes(lead, size, out, dtype, storage):
    found = ((*lead, size), dtype), ((size // 2, out), storage), ((-(-size // 8), out), "uint8")
    return [jax.ShapeDtypeStruct(*s) for s in (*found, ((out,), "float32"), ((out,), "float32"))]


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("lead", "size", "out", "dtype", "storage"),
    [
        ((5,), 48, 20, "float32", "float32"),
        ((2, 3), 8, 129, "float32", "bfloat16"),
        ((), 16, 5, "float32", "int8"),
    ],
)
def test_small_shapes_equal_the_reference(rng, lead, size, out, dtype, storage):
    x, values, index, bias, scale = problem(rng, lead, size, out, dtype, storage)
    got = jax.jit(run)(x, values, index, bias, scale)
    low = np.asarray(values.astype(dtype), np.float64)
    want = reference.sparse24(np.asarray(x, np.float64), low, np.asarray(index), bias, scale)
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE[dtype] * np.abs(want).max())


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("lead", "size", "out", "dtype", "storage"),
    [
        ((5,), 512, 1100, "bfloat16", "bfloat16"),  # one block of inputs, two of outputs, the last ragged
        ((2, 197), 64, 150, "float32", "float32"),  # ragged rows over two blocks
        pytest.param((1, 197), 768, 1000, "bfloat16", "bfloat16", marks=pytest.mark.slow),
        ((8,), 5120, 200, "bfloat16", "int8"),  # several blocks of inputs
    ],
)
def test_real_shapes(rng, lead, size, out, dtype, storage):
    x, values, index, bias, scale = problem(rng, lead, size, out, dtype, storage)
    tile = mosaic_tpu.tiles(int(np.prod(lead)), size, out)
    assert tile is not None and (size // 8) % tile.byte == 0
    got = jax.jit(run)(x, values, index, bias, scale)
    want = expected(x, values, index, bias, scale)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE[dtype] * np.abs(want).max())


@pytest.mark.usefixtures("interpreted")
def test_gradients_are_those_of_the_other_implementation(rng):
    x, values, index, bias, _ = problem(rng, (2, 5), 32, 12, "float32", "float32")
    g = jnp.asarray(rng.standard_normal((2, 5, 12)), jnp.float32)

    def pulled(implementation):
        f = lambda x, v, b: sparse24(x, v, index, b, implementation=implementation)  # noqa: E731
        return jax.jit(lambda *args: jax.vjp(f, *args)[1](g))(x, values, bias)

    pulls = pulled("mosaic_tpu")
    for got, want in zip(pulls, pulled("xla"), strict=True):
        np.testing.assert_array_equal(got, want)
    kernel = np.asarray(jax.jit(unpack)(values, index))
    np.testing.assert_allclose(pulls[0], np.asarray(g) @ kernel.T, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_devices_share_the_rows(rng):
    x, values, index, bias, scale = problem(rng, (4, 3), 64, 24, "float32", "int8")
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, sharding.data_sharding(mesh))
        got = jax.jit(run)(rows, values, index, bias, scale)
        assert got.sharding.is_equivalent_to(sharding.data_sharding(mesh), got.ndim)
    np.testing.assert_allclose(got, expected(x, values, index, bias, scale), atol=1e-5)


@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize("lead", [(3, 7), *(pytest.param(lead, marks=pytest.mark.slow) for lead in ((1,), ()))])
def test_rows_need_not_divide_among_8_devices(rng, lead):
    x, values, index, bias, scale = problem(rng, lead, 64, 24, "float32", "int8")
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=4))):
        got = jax.jit(run)(x, values, index, bias, scale)
    assert got.shape == (*lead, 24)
    np.testing.assert_allclose(got, expected(x, values, index, bias, scale), atol=1e-5)


@pytest.mark.parametrize(
    ("lead", "size", "dtype", "storage", "reason"),
    [
        ((2,), 12, "float32", "float32", "12 inputs are no multiple of 8"),
        ((2,), 4160, "float32", "float32", "4160 inputs are no multiple of 8, or above 4,096 none of 1,024"),
        ((2,), 16, "float16", "float32", "x is float16, not bfloat16 or float32"),
        ((2,), 16, "float32", "float16", "values are float16, not bfloat16, float32 or int8"),
        ((0,), 16, "float32", "float32", "x has no rows"),
    ],
)
def test_what_it_cannot_take_is_a_sentence(lead, size, dtype, storage, reason):
    args = shapes(lead, size, 4, dtype, storage)[:4]
    with pytest.raises(UserError, match=f"'mosaic_tpu' does not run this sparse24: {reason}"):
        jax.eval_shape(functools.partial(sparse24, implementation="mosaic_tpu"), *args)
    assert jax.eval_shape(sparse24, *args).shape == (*lead, 4)


def test_many_rows_are_left_to_others_unless_it_is_named(rng):
    shape = jax.ShapeDtypeStruct((2, 129, 64), jnp.float32)
    assert "258 rows, above 256" in mosaic_tpu.slower_reason(shape, None, None, None, None)
    assert mosaic_tpu.slower_reason(jax.ShapeDtypeStruct((1, 197, 64), jnp.float32), None, None, None, None) is None


@pytest.mark.parametrize(
    ("rows", "size", "out"), [(8, 768, 3072), (1, 3072, 768), (197, 768, 1000), (300, 1280, 5120), (8, 192, 40)]
)
def test_blocks_suit_the_chip(rows, size, out):
    tile = mosaic_tpu.tiles(rows, size, out)
    assert tile.byte == size // 8 or (tile.byte % 128 == 0 and (size // 8) % tile.byte == 0)
    assert tile.out == out or tile.out % 128 == 0
    assert tile.rows == rows or tile.rows % 16 == 0
    bytes_of_a_step = tile.byte * (4 * tile.out * 4 + tile.out + 8 * tile.rows * 4) + 8 * tile.rows * tile.out
    assert 2 * bytes_of_a_step < 14 * 2**20


def test_lowers_for_tpu_without_one():
    text = jax.jit(run).trace(*shapes((2, 197), 384, 1000, "bfloat16", "int8")).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in text.as_text()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_compiles(tpu_chips, topology):
    devices = tpu_chips(topology)
    one = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), P())
    for lead, size, out, dtype, storage in [
        ((8,), 768, 3072, "bfloat16", "bfloat16"),
        ((8,), 3072, 768, "bfloat16", "int8"),
        ((1, 197), 192, 1000, "float32", "float32"),
    ]:
        lowered = jax.jit(run, in_shardings=one, out_shardings=one).lower(*shapes(lead, size, out, dtype, storage))
        compiled = lowered.compile()
        assert "tpu_custom_call" in compiled.as_text()
        dense = size * out * 2
        assert compiled.memory_analysis().temp_size_in_bytes < dense / 8  # the kernel is never written out
