"""The fused kernel beyond the contract suite: tiles, what it refuses, and its lowering for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import tiles
from vit_jax.kernels.monarch import monarch, mosaic_tpu, reference
from vit_jax.types import UserError

OPTIONS = {"input_parts": 1, "blocked": False}


def shapes(factors, rows=100, dtype="float32"):
    K, q, p, L, S = factors
    sizes = ((rows, K * p), (K, q, p), (L, S, K * q // L), (L * S,))
    return [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, (dtype, *["float32"] * 3), strict=True)]


def draw(rng, factors, rows):
    return [rng.standard_normal(s.shape).astype("float32") for s in shapes(factors, rows)]


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rows", [48, 37])
def test_several_tiles_the_last_one_ragged(rng, rows):
    args = draw(rng, (2, 4, 3, 2, 5), rows)
    g = rng.standard_normal((rows, 10)).astype("float32")

    @jax.jit
    def both(*args):
        y, pull = jax.vjp(functools.partial(monarch, implementation="mosaic_tpu"), *args)
        return y, *pull(g)

    want = reference.product(*args), *reference.gradients(*args[:3], g)
    with tiles.pinned(monarch=16):
        got = both(*args)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_lowered_program_holds_both_kernels():
    def loss(*args):
        return jnp.sum(monarch(*args, implementation="mosaic_tpu"))

    for f, names in ((loss, ["forward"]), (jax.grad(loss, (0, 1)), ["forward", "backward"])):
        text = jax.jit(f).trace(*shapes((4, 8, 8, 4, 8))).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") == len(names)
        assert all(f"monarch_{name}" in text for name in names)


def test_tiles_shrink_until_they_fit():
    args = shapes((4, 192, 192, 4, 768), 1576)
    plan = mosaic_tpu.tiling(mosaic_tpu.Sizes.of(768, *args[1:], 1), True)
    assert [mosaic_tpu._tile(plan, args[0], backward) for backward in (False, True)] == [528, 400]
    large = shapes((4, 192, 192, 4, 1536), 1576)
    assert mosaic_tpu._tile(mosaic_tpu.tiling(mosaic_tpu.Sizes.of(768, *large[1:], 1), True), large[0], True) == 208
    assert mosaic_tpu._tile(plan, shapes((4, 192, 192, 4, 768), 17)[0], True) == 17


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (shapes((4, 1024, 1024, 4, 4096)), "its backward takes 548 MiB of VMEM, of which it may use 32"),
        (shapes((128, 128, 2, 2, 4)), "128 chunks are more than the 64 it is unrolled for"),
        (shapes((2, 4, 3, 2, 5), dtype="float16"), "x is float16, neither float32 nor bfloat16"),
        (shapes((2, 4, 3, 2, 5), rows=0), "there are no rows"),
    ],
)
def test_what_it_refuses(args, sentence):
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(functools.partial(monarch, implementation="mosaic_tpu"), *args)


def test_where_a_dense_product_is_less_work():
    blocked = {**OPTIONS, "blocked": True}
    assert mosaic_tpu.slower_reason(*shapes((4, 192, 192, 4, 768)), **blocked) is None
    few = mosaic_tpu.slower_reason(*shapes((4, 48, 48, 4, 192)), **blocked)
    assert few == "blocks filled up to 128 lanes make 1.1 times the work of a dense product"
