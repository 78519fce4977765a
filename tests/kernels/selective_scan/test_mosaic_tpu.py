"""The kernel beyond the contract suite: what it refuses, and that the real TPU compiler takes it, without a TPU."""

import functools

import jax
import pytest

from vit_jax import sharding
from vit_jax.kernels.selective_scan import mosaic_tpu, selective_scan


def shapes(batch=4, tokens=197, channels=384, size=16, dtype="float32", delta="float32"):
    """The arguments of the scan."""
    tokens, row = (batch, tokens, channels), (batch, tokens, size)
    sizes = (tokens, dtype), (tokens, delta), ((channels, size), "float32"), (row, dtype), (row, dtype)
    return [jax.ShapeDtypeStruct(*one) for one in (*sizes, ((channels,), "float32"))]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (shapes(), None),
        (shapes(tokens=16384, channels=1536), None),
        (shapes(size=512), "its backward takes 169 MiB of VMEM, of which it may use 32"),
        (shapes(size=0), "there is no state"),
        (shapes(batch=0), "there are no rows"),
        (shapes(dtype="float16"), "x is float16, neither float32 nor bfloat16"),
        (shapes(delta="float16"), "delta is float16, neither float32 nor bfloat16"),
    ],
)
def test_what_it_refuses(args, reason):
    assert mosaic_tpu.unsupported_reason(*args) == reason


@pytest.mark.parametrize(
    ("args", "tiles"),
    [
        (shapes(), mosaic_tpu.Tiles(197, 384, 16, 200, 1, 384, 1, 8)),
        (shapes(tokens=577, channels=768), mosaic_tpu.Tiles(577, 768, 16, 256, 3, 384, 2, 8)),
        (shapes(channels=1536, dtype="bfloat16"), mosaic_tpu.Tiles(197, 1536, 16, 208, 1, 512, 3, 16)),
    ],
)
def test_how_tokens_and_channels_are_divided(args, tiles):
    assert mosaic_tpu.Tiles.of(*args[:3]) == tiles


def both(g, *args):
    y, pull = jax.vjp(functools.partial(selective_scan, implementation="mosaic_tpu"), *args)
    return y, pull(g)


def compiled(mesh, args):
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    places = (split, split, whole, split, split, whole)
    args = [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=p) for v, p in zip(args, places, strict=True)]
    with jax.set_mesh(mesh):
        return jax.jit(both).lower(args[0], *args).compile().as_text()


@pytest.mark.parametrize(
    "args",
    [
        shapes(),
        shapes(2, 577, 768, 16, "bfloat16"),
        shapes(1, 300, 520, 5, "bfloat16", "bfloat16"),
        shapes(3, 21, 72, 16),
        shapes(1, 1, 4, 1),
    ],
)
def test_the_compiler_takes_it(tpu_chips, args):
    text = compiled(sharding.make_mesh(sharding.MeshConfig(), tpu_chips("v5e:2x2")[:1]), args)
    assert "selective_scan_forward" in text and "selective_scan_backward" in text


def test_each_chip_takes_its_images(tpu_chips):
    text = compiled(sharding.make_mesh(sharding.MeshConfig(2, 2), tpu_chips("v6e:2x2")), shapes(8))
    assert "f32[2,197,384]" in text and "f32[8,197,384]" not in text
    assert "selective_scan_backward" in text and "all-reduce" in text
