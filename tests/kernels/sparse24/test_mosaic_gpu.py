"""The Hopper kernel, interpreted against float64 and lowered for a GPU that is not there."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.sparse24 import mosaic_gpu, reference, sparse24
from vit_jax.kernels.sparse24.packed import compress, quantise
from vit_jax.types import UserError


@functools.partial(jax.jit, static_argnums=1)
def packed(kernel, storage):
    """The packed kernel in ``storage`` and its scale, None but for integers."""
    return quantise(*compress(kernel)) if storage == "int8" else (*compress(kernel, storage), None)


def problem(rng, lead, size, out, storage, dtype="bfloat16"):
    x = jnp.asarray(rng.standard_normal((*lead, size)), dtype)
    bias = jnp.asarray(rng.standard_normal(out), jnp.float32)
    values, index, scale = packed(rng.standard_normal((size, out)).astype(np.float32) / size**0.5, storage)
    return x, values, index, bias, scale


def run(x, values, index, bias, scale):
    return sparse24(x, values, index, bias, scale=scale, implementation="mosaic_gpu")


def shapes(lead, size, out, storage, dtype="bfloat16"):
    found = ((*lead, size), dtype), ((size // 2, out), storage), ((size // 8, out), "uint8")
    scale = jax.ShapeDtypeStruct((out,), "float32") if storage == "int8" else None
    return [*(jax.ShapeDtypeStruct(*s) for s in (*found, ((out,), "float32"))), scale]


def close(got, want):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=1e-2 * np.abs(want).max())


@pytest.mark.first(1)
@pytest.mark.usefixtures("gpu_interpreted")
@pytest.mark.parametrize(
    ("lead", "size", "out", "storage", "programs"),
    [
        ((5,), 256, 128, "bfloat16", 1),  # one step, two tiles of outputs
        ((2, 4), 704, 64, "int8", 1),  # three steps in one program, the last overlaps the one before
        ((3, 23), 1024, 64, "float32", 3),  # two tiles of rows that overlap, two parts of the inputs, two steps each
        ((), 1280, 64, "bfloat16", 1),  # five steps: every stage is used again
    ],
)
def test_value_equals_the_reference(rng, monkeypatch, lead, size, out, storage, programs):
    monkeypatch.setattr(mosaic_gpu, "PROGRAMS", programs)
    x, values, index, bias, scale = problem(rng, lead, size, out, storage)
    got = jax.jit(run)(x, values, index, bias, scale)
    low = np.asarray(values.astype(jnp.bfloat16), np.float64)
    want = reference.sparse24(np.asarray(x, np.float64), low, np.asarray(index), bias, scale)
    assert got.dtype == "bfloat16" and got.shape == want.shape
    close(got, want)


def test_lowers_for_cuda_without_one():
    for lead, size, out, storage in [
        ((8,), 768, 3072, "bfloat16"),
        ((1, 16), 3072, 768, "int8"),
        ((2, 197), 384, 1536, "float32"),
    ]:
        args = shapes(lead, size, out, storage)
        text = jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("mosaic_gpu_v2") == 1 and "sparse24" in text


@pytest.mark.usefixtures("gpu_interpreted")
def test_gradients_are_those_of_the_other_implementation(rng):
    x, values, index, bias, _ = problem(rng, (2, 3), 256, 64, "bfloat16")
    g = jnp.asarray(rng.standard_normal((2, 3, 64)), jnp.bfloat16)

    def pulled(implementation):
        f = lambda x, v, b: sparse24(x, v, index, b, implementation=implementation)  # noqa: E731
        return jax.jit(lambda *args: jax.vjp(f, *args)[1](g))(x, values, bias)

    for got, want in zip(pulled("mosaic_gpu"), pulled("xla"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_devices_share_the_rows(rng):
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    x, *rest = shapes((32, 3), 768, 64, "bfloat16")
    placed = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.data_sharding(mesh))
    ragged = jax.ShapeDtypeStruct((31, 3, 768), x.dtype)  # 93 rows make 24 of each device as well
    with jax.set_mesh(mesh):
        for rows in (placed, ragged):
            text = jax.jit(run).trace(rows, *rest).lower(lowering_platforms=("cuda",)).as_text()
            assert "tensor<3x24x64xf32>" in next(line for line in text.splitlines() if "custom_call" in line)
            assert mosaic_gpu.slower_reason(rows, *rest) is None


@pytest.mark.parametrize(
    ("lead", "size", "out", "dtype", "storage", "reason"),
    [
        ((2,), 256, 64, "float32", "bfloat16", "x is float32, not bfloat16, in which alone the matrix unit"),
        ((2,), 256, 64, "bfloat16", "float16", "values are float16, not bfloat16, float32 or int8"),
        ((2,), 264, 64, "bfloat16", "int8", "264 inputs are no multiple of 64, or fewer than 256"),
        ((2,), 192, 64, "bfloat16", "int8", "192 inputs are no multiple of 64, or fewer than 256"),
        ((2,), 256, 1000, "bfloat16", "int8", "1000 outputs are no multiple of 64"),
        ((0,), 256, 64, "bfloat16", "int8", "x has no rows"),
    ],
)
def test_what_it_cannot_take_is_a_sentence(lead, size, out, dtype, storage, reason):
    with pytest.raises(UserError, match=f"'mosaic_gpu' does not run this sparse24: {reason}"):
        jax.eval_shape(run, *shapes(lead, size, out, storage, dtype))


def test_what_is_left_to_others_unless_it_is_named(monkeypatch):
    assert mosaic_gpu.slower_reason(*shapes((8, 8), 256, 64, "int8")) is None
    assert "65 rows, above 64" in mosaic_gpu.slower_reason(*shapes((65,), 256, 64, "int8"))
    assert "cast first" in mosaic_gpu.slower_reason(*shapes((8,), 256, 64, "float32"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, found in (("9.0", None), ("10.0", "this GPU has compute capability 10.0, the kernel is for 9.0")):
        monkeypatch.setattr(jax, "local_devices", lambda c=capability: [types.SimpleNamespace(compute_capability=c)])
        assert mosaic_gpu.slower_reason(*shapes((8,), 256, 64, "int8")) == found


@pytest.mark.parametrize(
    ("rows", "size", "out", "splits"),
    [(8, 768, 3072, 3), (16, 3072, 768, 12), (1, 4096, 16384, 1), (300, 768, 3072, 1)],
)
def test_inputs_are_divided_until_the_chip_is_busy(rows, size, out, splits):
    tile = mosaic_gpu.tiles(rows, size, out)
    assert tile.splits == splits and tile.steps * splits * mosaic_gpu.BYTES >= size // 8 and tile.steps <= 16
    assert tile.rows % 8 == 0 and tile.rows >= tile.height >= min(rows, 64)
