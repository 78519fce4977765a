"""The TPU kernels beyond the contract suite: lists of blocks, tiles, what they refuse, and the real compiler."""

import functools

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels import tiles
from vit_jax.kernels.block_sparse import block_sparse, mosaic_tpu, patterns, reference
from vit_jax.types import UserError

NAMES = ("block_sparse_forward", "block_sparse_input_gradient", "block_sparse_kernel_gradient")


def shapes(rows, inputs, out, block, per, dtype="float32"):
    sizes = ((rows, inputs), dtype), ((per, block, out), "float32"), ((out // block, per), "int32"), ((out,), "float32")
    return [jax.ShapeDtypeStruct(*s) for s in sizes]


def test_the_same_blocks_in_both_orders():
    index = np.array([[3, 0], [0, 2], [3, 2]], np.int32)
    by_output, by_input = (
        jax.tree.map(np.asarray, b)
        for b in jax.jit(lambda index: (mosaic_tpu.by_output(index), mosaic_tpu.by_input(index, 4)))(index)
    )
    assert by_output.start.tolist() == [0, 2, 4, 6] and by_output.source.tolist() == [3, 0, 0, 2, 3, 2]
    assert by_input.start.tolist() == [0, 2, 2, 4, 6]  # nobody reads block 1
    assert by_input.source.tolist() == by_input.column.tolist() == [0, 1, 1, 2, 0, 2]
    assert by_input.slot.tolist() == [1, 0, 1, 1, 0, 0]
    assert {field.dtype for field in (*by_output, *by_input)} == {np.dtype("int32")}


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [48, 37])
def test_several_tiles_the_last_one_ragged(rng, rows):
    index = np.array([[1, 2], [2, 1]], np.int32)
    x, kernel, bias, g = (
        rng.standard_normal(s).astype("float32") for s in ((rows, 384), (2, 128, 256), (256,), (rows, 256))
    )

    @jax.jit
    def both(*args):
        y, pull = jax.vjp(lambda x, k, b: block_sparse(x, k, index, b, implementation="mosaic_tpu"), *args)
        return y, *pull(g)

    want = reference.product(x, kernel, index, bias), *reference.gradients(x, kernel, index, g)
    with tiles.pinned(block_sparse=16):
        got = both(x, kernel, bias)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * abs(b).max())


def test_tiles_shrink_until_they_fit():
    x, kernel, *_ = shapes(1576, 768, 3072, 128, 2, "bfloat16")
    assert [mosaic_tpu._tile(x, kernel, which) for which in range(3)] == [1576, 1576, 1576]
    x, kernel, *_ = shapes(1576, 1664, 8192, 128, 3, "float32")
    assert [mosaic_tpu._tile(x, kernel, which) for which in range(3)] == [800, 272, 528]
    assert mosaic_tpu._tile(*shapes(17, 768, 3072, 128, 2)[:2], 1) == 17


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (shapes(8, 4096, 16384, 128, 8), "its gradient takes 129 MiB of VMEM, of which it may use 32"),
        (shapes(8, 768, 768, 64, 4), "blocks of 64 are no multiple of the 128 lanes"),
        (shapes(8, 768, 768, 128, 2, "float16"), "x is float16, neither float32 nor bfloat16"),
        (shapes(0, 768, 768, 128, 2), "there are no rows"),
    ],
)
def test_what_it_refuses(args, sentence):
    with pytest.raises(UserError, match=f"'mosaic_tpu' does not run this block-sparse product: {sentence}"):
        jax.eval_shape(functools.partial(block_sparse, implementation="mosaic_tpu"), *args)


@pytest.fixture(params=["v5e:2x2", "v6e:2x2"])
def chips(tpu_chips, request):
    return tpu_chips(request.param)


def compiled(mesh, rows, inputs, out, block, per, dtype, index=None):
    *args, bias = shapes(rows, inputs, out, block, per, dtype)
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    args = [jax.ShapeDtypeStruct((rows, out), dtype), *args, bias]
    places = split, split, whole, whole, whole
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=p) for a, p in zip(args, places, strict=True)]

    def both(g, x, kernel, at, bias):
        at = at if index is None else index
        y, pull = jax.vjp(lambda x, k, b: block_sparse(x, k, at, b, implementation="mosaic_tpu"), x, kernel, bias)
        return y, pull(g)

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("rows", "inputs", "out", "block", "per", "dtype"),
    [(1576, 768, 3072, 128, 2, "bfloat16"), (197, 3072, 768, 256, 3, "float32"), (1, 768, 768, 128, 6, "bfloat16")],
)
def test_one_chip(chips, rows, inputs, out, block, per, dtype):
    text = compiled(sharding.make_mesh(sharding.MeshConfig(), chips[:1]), rows, inputs, out, block, per, dtype)
    assert all(name in text for name in NAMES) and text.count("tpu_custom_call") >= 3


def test_each_chip_takes_its_rows(chips):
    mesh, index = sharding.make_mesh(sharding.MeshConfig(2, 2), chips), patterns.butterfly(6, 24, 2)
    text = compiled(mesh, 1576, 768, 3072, 128, 2, "bfloat16", index)
    assert "bf16[394,3072]" in text and all(name in text for name in NAMES)
    assert "all-reduce" in text and "bf16[1576" not in text
