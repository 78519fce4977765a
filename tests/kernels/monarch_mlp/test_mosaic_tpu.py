"""The kernel beyond the contract suite: what it refuses, and that the real TPU compiler takes it, without a TPU."""

import functools

import jax
import pytest

from vit_jax import sharding
from vit_jax.kernels.monarch_mlp import monarch_mlp, mosaic_tpu
from vit_jax.kernels.monarch_mlp.factors import Factors
from vit_jax.layers.mlp import ACTIVATIONS


def shapes(width, blocks=4, rows=100, dtype="float32"):
    """x and both maps of a hidden layer of four times the width."""
    p = width // blocks
    maps = ((blocks, p, p), (blocks, 4 * p, p), (4 * width,)), ((blocks, p, 4 * p), (blocks, p, p), (width,))
    first, second = (Factors(*(jax.ShapeDtypeStruct(s, "float32") for s in m)) for m in maps)
    return jax.ShapeDtypeStruct((rows, width), dtype), first, second, jax.nn.relu


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (shapes(768), None),
        (shapes(4096), "its backward takes 424 MiB of VMEM, of which it may use 32"),
        (shapes(16384, 128), "128 blocks are more than the 64 it is unrolled for"),
        (shapes(64, dtype="float16"), "x is float16, neither float32 nor bfloat16"),
        (shapes(64, rows=0), "there are no rows"),
    ],
)
def test_what_it_refuses(args, reason):
    assert mosaic_tpu.unsupported_reason(*args) == reason


def test_where_dense_products_are_less_work():
    assert mosaic_tpu.slower_reason(*shapes(768)) is None
    assert "times the work of a dense product" in mosaic_tpu.slower_reason(*shapes(128))


def test_images_are_tiles_where_memory_allows():
    x, *maps, _ = shapes(768, dtype="bfloat16")
    plan = mosaic_tpu.plan(x, *maps)
    images = jax.ShapeDtypeStruct((64, 197, 768), "bfloat16")
    assert [mosaic_tpu._tile(plan, images, backward) for backward in (False, True)] == [197, 197]


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("tokens", "width", "activation", "dtype"),
    [
        (197, 768, "gelu", "bfloat16"),
        (50, 192, "relu", "float32"),
        (257, 384, "gelu_tanh", "bfloat16"),
        (130, 768, "quick_gelu", "float32"),
    ],
)
def test_one_chip(tpu_chips, tokens, width, activation, dtype):
    q = width // 4
    maps = ((4, q, q), (4, 4 * q, q), (4 * width,)), ((4, q, 4 * q), (4, q, q), (width,))
    mesh = sharding.make_mesh(sharding.MeshConfig(), tpu_chips("v5e:2x2")[:1])
    shape = lambda s, d="float32": jax.ShapeDtypeStruct(s, d, sharding=jax.sharding.NamedSharding(mesh, jax.P()))  # noqa: E731
    x = shape((4, tokens, width), dtype)

    def both(x, g, *maps):
        f = functools.partial(monarch_mlp, activation=ACTIVATIONS[activation])
        y, pull = jax.vjp(functools.partial(f, implementation="mosaic_tpu"), x, *maps)
        return y, pull(g)

    with jax.set_mesh(mesh):
        text = jax.jit(both).lower(x, x, *(Factors(*map(shape, m)) for m in maps)).compile().as_text()
    assert "monarch_mlp_forward" in text and "monarch_mlp_backward" in text
