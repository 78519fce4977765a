"""Vocabulary cross-entropy: float64 NumPy, chunks of any size, both precisions, and the memory it does not take."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.losses import caption
from vit_jax.types import UserError


def make(rng, b=3, length=7, d=5, v=11):
    hidden, kernel = rng.normal(size=(b, length, d)), rng.normal(size=(d, v))
    weights = (rng.random((b, length)) < 0.7) * rng.random((b, length))
    return hidden, kernel, rng.integers(0, v, (b, length)).astype(np.int32), weights


def reference(hidden, kernel, targets, weights, e=0.0, c=0.0):
    """Values, and the gradients of their sum with respect to hidden and kernel."""
    z = hidden @ kernel
    total = np.log(np.exp(z).sum(-1, keepdims=True))
    t = (1 - e) * np.eye(z.shape[-1])[targets] + e / z.shape[-1]
    values = weights * ((t * (total - z)).sum(-1) + c * total[..., 0] ** 2)
    dz = weights[..., None] * (np.exp(z - total) * (1 + 2 * c * total) - t)
    return values, dz @ kernel.T, np.einsum("bld,blv->dv", hidden, dz)


@functools.cache
def compiled(chunk, e=0.0, c=0.0):
    def both(hidden, kernel, targets, weights):
        loss = lambda h, k: caption.caption_cross_entropy(  # noqa: E731
            h, k, targets, weights, label_smoothing=e, z_loss=c, chunk=chunk
        )
        values, back = jax.vjp(loss, hidden, kernel)
        return values, *back(jnp.ones_like(values))

    return jax.jit(both)


OPTIONS = [(0.0, 0.0), (0.1, 0.0), (0.2, 0.03)]


@pytest.mark.parametrize(
    ("chunk", "e", "c"),
    [
        *((9, *options) for options in OPTIONS),
        (1000, 0.2, 0.03),
        *(pytest.param(1000, *options, marks=pytest.mark.slow) for options in OPTIONS[:2]),
        *(pytest.param(chunk, *options, marks=pytest.mark.slow) for chunk in (1, 6) for options in OPTIONS),
    ],
)
def test_value_and_gradients(chunk, e, c, rng):
    """Chunks of 1, 2, 3 and 7 of 7 positions: ragged ones too."""
    args = make(rng)
    with jax.enable_x64(True):
        for got, want in zip(compiled(chunk, e, c)(*args), reference(*args, e, c), strict=True):
            assert got.dtype == "float64"
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_float32(rng):
    args = make(rng)
    low = [x if x.dtype == np.int32 else x.astype(np.float32) for x in args]
    for got, want in zip(compiled(6)(*low), reference(*args), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def test_uniform_logits():
    args = np.zeros((2, 3, 4)), np.ones((4, 10)), np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
    values = jax.jit(caption.caption_cross_entropy)(*(a.astype("float32") if a.dtype == float else a for a in args))
    np.testing.assert_allclose(values, np.log(10), rtol=1e-6)


def test_tokens_of_weight_zero_may_hold_anything(rng):
    hidden, kernel, targets, weights = (x.astype(np.float32) if x.dtype == float else x for x in make(rng))
    want = compiled(6)(hidden, kernel, targets, weights)
    out = weights == 0
    assert out.any()
    hidden[out] = np.nan
    targets[out] = -5
    for got, expected in zip(compiled(6)(hidden, kernel, targets, weights), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_low_precision_adds_up_in_float32(rng):
    """The products of bfloat16 operands are exact in float32; rounding the logits to bfloat16 would cost 2^-9."""
    hidden, kernel, targets, weights = make(rng, d=64, v=300)
    h, k = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, kernel))
    values, dh, dk = compiled(6)(h, k.astype(jnp.float32), targets, weights.astype(np.float32))
    exact = [np.asarray(x.astype(jnp.float32), np.float64) for x in (h, k)]
    want = reference(*exact, targets, weights)
    assert (values.dtype, dh.dtype, dk.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(values, want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dh.astype(jnp.float32), want[1], atol=0.02 * np.abs(want[1]).max())
    np.testing.assert_allclose(dk, want[2], atol=0.01 * np.abs(want[2]).max())
    text = compiled(6).lower(h, k.astype(jnp.float32), targets, weights.astype(np.float32)).as_text()
    products = re.findall(r"dot_general .* : \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) -> tensor<\S*x(\w+)>", text)
    assert products == [("bf16", "bf16", "f32")] * 4  # logits, logits again, two gradients


def test_memory_does_not_hold_all_logits():
    shape = lambda *s, t="float32": jax.ShapeDtypeStruct(s, t)  # noqa: E731
    args = shape(4, 64, 8), shape(8, 4096), shape(4, 64, t="int32"), shape(4, 64)
    few, all_ = (compiled(n).lower(*args).compile().memory_analysis().temp_size_in_bytes for n in (16, 256))
    assert few < all_ / 5


@pytest.mark.parametrize(
    ("options", "words"),
    [({"label_smoothing": 1.0}, r"label_smoothing=1.0 is not allowed"), ({"z_loss": -1.0}, r"z_loss=-1.0 is not")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        caption.caption_cross_entropy(
            jnp.zeros((1, 2, 3)), jnp.zeros((3, 4)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)), **options
        )
