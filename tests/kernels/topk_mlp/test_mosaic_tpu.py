"""The TPU kernel beyond the contract suite: its lists, what it reads, refuses, and the real compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.topk_mlp import mosaic_tpu, reference, topk_mlp
from vit_jax.types import UserError

mosaic = functools.partial(topk_mlp, implementation="mosaic_tpu")


def shapes(rows, units=3072, width=768, dtype="bfloat16", kernel="float32"):
    sizes = ((rows, units), dtype), ((units, width), kernel), ((width,), kernel)
    return [jax.ShapeDtypeStruct(*s) for s in sizes]


@pytest.mark.parametrize("piece", [1, 4])
def test_the_lists_of_every_tile(rng, piece):
    h = np.where(rng.random((3, 2, 24)) < 0.12, rng.standard_normal((3, 2, 24)), 0).astype("float32")
    h[1] = 0
    pieces, count, values = jax.jit(mosaic_tpu.used, static_argnums=(1, 2))(h, piece, 20)
    pieces = np.asarray(pieces)
    assert values.shape == (3, 2, 20 * piece)
    for tile in range(3):
        want = np.unique(np.flatnonzero(h[tile].any(0)) // piece)
        assert count[tile] == len(want)
        np.testing.assert_array_equal(pieces[tile], [*want, *[24 // piece] * (20 - len(want))])
        columns = (want[:, None] * piece + np.arange(piece)).ravel()
        np.testing.assert_array_equal(values[tile, :, : len(columns)], h[tile][:, columns])
        assert not values[tile, :, len(columns) :].any()


def test_more_units_than_promised_do_not_leave_the_list():
    assert jax.jit(mosaic_tpu.used, static_argnums=(1, 2))(jnp.ones((1, 1, 24)), 1, 8)[1] == 8


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("kernel_type", "count"),
    [
        ("float32", 128),
        ("float32", 129),
        ("bfloat16", 129),
        *(pytest.param("float32", count, marks=pytest.mark.slow) for count in (127, 300)),
        *(pytest.param("bfloat16", count, marks=pytest.mark.slow) for count in (127, 128, 300)),
    ],
)
def test_chunks_begin_and_end_anywhere_and_others_are_not_read(rng, kernel_type, count):
    units = 640
    kept = np.sort(rng.permutation(units)[:count])
    if kernel_type == "bfloat16":  # rows come in eights
        kept = np.arange(count) + 3
    h = np.zeros((3, units), np.float32)
    h[0, kept], h[2, kept[::2]] = rng.standard_normal(count), 1
    kernel = np.full((units, 10), np.nan, np.float32)
    piece = mosaic_tpu.PIECE[kernel_type]
    read = (np.unique(kept // piece)[:, None] * piece + np.arange(piece)).ravel()
    kernel[read] = rng.standard_normal((len(read), 10))
    kernel = jnp.asarray(kernel, kernel_type)
    got = jax.jit(functools.partial(mosaic, k=count))(h, kernel)
    want = reference.product(h, np.asarray(kernel, np.float64))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("args", "k", "sentence"),
    [
        (shapes(0), 1, "there are no tokens"),
        (shapes(2, dtype="float16"), 1, "h is float16, neither float32 nor bfloat16"),
        (shapes(2, kernel="float16"), 1, "its kernel is float16, neither float32 nor bfloat16"),
        (shapes(2, units=36, kernel="bfloat16"), 1, "36 bfloat16 rows of the kernel are no multiple of 8"),
        (shapes(1576), 128, "lists of units for 50 tiles of tokens take more than 256 KiB of scalar memory"),
        (shapes(16, width=40_000), 128, "it takes 47 MiB of VMEM, of which it may use 32"),
    ],
)
def test_what_it_refuses(args, k, sentence):
    with pytest.raises(UserError, match=f"'mosaic_tpu' does not run this topk_mlp: {sentence}"):
        jax.eval_shape(functools.partial(mosaic, k=k), *args)


def test_where_the_tokens_need_most_rows():
    assert mosaic_tpu.slower_reason(*shapes(12), k=128) is None
    assert (
        mosaic_tpu.slower_reason(*shapes(13), k=128) == "128 units of 13 tokens may need 1664 of 3072 rows, above half"
    )
    half = mosaic_tpu.slower_reason(*shapes(2, kernel="bfloat16"), k=128)
    assert half == "128 units of 2 tokens may need 2048 of 3072 rows, above half"
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(2, 2, 2))):
        assert mosaic_tpu.slower_reason(*shapes(1), k=1) == "the hidden units are divided among 2 devices"
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(4, 2))):
        assert mosaic_tpu.slower_reason(*shapes(96), k=128) is None


def compiled(mesh, f, rows, dtype, kernel):
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    pairs = zip(shapes(rows, dtype=dtype, kernel=kernel), (split, whole, whole), strict=True)
    args = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s, place in pairs]
    with jax.set_mesh(mesh):
        return jax.jit(f).lower(*args).compile()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_compiler_takes_it(tpu_chips, topology):
    chips = tpu_chips(topology)
    one = sharding.make_mesh(sharding.MeshConfig(), chips[:1])
    for rows, k, dtype, kernel in (
        (1, 128, "bfloat16", "float32"),
        (4, 32, "bfloat16", "bfloat16"),
        (37, 40, "float32", "float32"),
    ):
        forward = compiled(one, functools.partial(mosaic, k=k), rows, dtype, kernel)
        assert "topk_mlp" in forward.as_text()
        # Neither a copy of the kernel nor one in the other type is made.
        assert forward.memory_analysis().temp_size_in_bytes < 3072 * 768
    loss = jax.value_and_grad(lambda *args: jnp.sum(jnp.square(mosaic(*args, k=32))), (0, 1, 2))
    both = compiled(sharding.make_mesh(sharding.MeshConfig(2, 2), chips), loss, 16, "float32", "float32").as_text()
    assert "f32[4,3072]" in both and "topk_mlp" in both and "all-reduce" in both
