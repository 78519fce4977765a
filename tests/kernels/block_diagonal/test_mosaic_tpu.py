"""The TPU kernel beyond the contract suite: tiles, what it refuses, and the real compiler, which needs no TPU."""

import functools

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels import tiles
from vit_jax.kernels.block_diagonal import block_diagonal, mosaic_tpu, reference
from vit_jax.kernels.block_diagonal.tiling import tiling
from vit_jax.types import UserError

mosaic = functools.partial(block_diagonal, implementation="mosaic_tpu")


def shapes(kernel, rows=100, dtype="float32"):
    n, size, features = kernel
    sizes = ((rows, n * size), dtype), (kernel, "float32"), ((n * features,), "float32")
    return [jax.ShapeDtypeStruct(*s) for s in sizes]


def both(x, kernel, bias, g):
    y, pull = jax.vjp(mosaic, x, kernel, bias)
    return y, *pull(g)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [48, 37])
def test_several_tiles_the_last_one_ragged(rng, rows):
    x, kernel, bias = (rng.standard_normal(s.shape).astype("float32") for s in shapes((4, 64, 192), rows))
    g = rng.standard_normal((rows, 768)).astype("float32")
    want = reference.product(x, kernel, bias), *reference.gradients(x, kernel, g)
    with tiles.pinned(block_diagonal=16):
        got = jax.jit(both)(x, kernel, bias, g)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_tiles_shrink_until_they_fit():
    x, kernel, _ = shapes((2, 1280, 2560), 1576)
    assert [mosaic_tpu._tile(tiling(*kernel.shape), x, backward) for backward in (False, True)] == [112, 16]
    assert mosaic_tpu._tile(tiling(4, 192, 768), shapes((4, 192, 768), 17)[0], True) == 17


def test_rows_are_many_tiles_or_few_of_many_rows():
    for rows, tile in ((1576, 240), (4096, 512), (8192, 1024), (12608, 976)):
        x, kernel, _ = shapes((4, 192, 768), rows, "bfloat16")
        assert mosaic_tpu._tile(tiling(*kernel.shape), x, False) == tile


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (shapes((2, 2048, 2048)), "its backward takes 65 MiB of VMEM, of which it may use 32"),
        (shapes((65, 3, 5)), "65 blocks that begin within registers are more than the 64 it is unrolled for"),
        (shapes((2, 3, 5), dtype="float16"), "x is float16, neither float32 nor bfloat16"),
        (shapes((2, 3, 5), rows=0), "there are no rows"),
    ],
)
def test_what_it_refuses(args, sentence):
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(mosaic, *args)


def test_where_a_dense_product_is_less_work():
    assert mosaic_tpu.slower_reason(*shapes((4, 192, 768))) is None
    few = mosaic_tpu.slower_reason(*shapes((4, 24, 24)))
    assert few == "blocks filled up to 128 lanes make 4.0 times the work of a dense product"


def compiled(mesh, kernel, rows, dtype):
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    g = jax.ShapeDtypeStruct((rows, kernel[0] * kernel[2]), dtype)
    places = (split, whole, whole, split)
    pairs = zip((*shapes(kernel, rows, dtype), g), places, strict=True)
    args = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s, place in pairs]
    with jax.set_mesh(mesh):
        return jax.jit(both).lower(*args).compile().as_text()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_compiler_takes_it(tpu_chips, topology):
    chips = tpu_chips(topology)
    one = sharding.make_mesh(sharding.MeshConfig(), chips[:1])
    for kernel, rows, dtype in (
        ((4, 192, 768), 1576, "bfloat16"),
        ((16, 192, 48), 197, "float32"),
        ((4, 192, 250), 197, "bfloat16"),
    ):
        text = compiled(one, kernel, rows, dtype)
        assert "block_diagonal_forward" in text and "block_diagonal_backward" in text
        assert text.count("tpu_custom_call") >= 2
    text = compiled(sharding.make_mesh(sharding.MeshConfig(2, 2), chips), (4, 192, 768), 1576, "bfloat16")
    assert "bf16[394,3072]" in text and "block_diagonal_backward" in text
    assert "all-reduce" in text and "bf16[1576" not in text
