"""Convolutions, depthwise and not, against loops in float64, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.conv import IMPLEMENTATIONS, Conv, DepthwiseConv, depthwise
from vit_jax.types import UserError


def reference(x, kernel):
    """Every output as a sum over its square of the input; zeros beyond the edge."""
    size = len(kernel)
    wide = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
    out = np.zeros(x.shape)
    for h in range(x.shape[1]):
        for w in range(x.shape[2]):
            out[:, h, w] = np.einsum("bijd,ijd->bd", wide[:, h : h + size, w : w + size], kernel[:, :, 0])
    return out


def gradients(x, kernel, g):
    """The transpose of the map, which is linear in each argument: of ``<g, y>`` by every entry of it."""
    size = len(kernel)
    wide, back = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)]), np.zeros(kernel.shape)
    for i in range(size):
        for j in range(size):
            back[i, j, 0] = (wide[:, i : i + x.shape[1], j : j + x.shape[2]] * g).sum((0, 1, 2))
    return reference(g, kernel[::-1, ::-1]), back


@pytest.mark.first(2)
@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((3, 5, 4, 6), 3, 1), ((1, 2, 3, 5), 7, 1), ((2, 5, 6, 3), 5, 2)]
)
def test_equals_the_sum_in_float64(rng, how, shape, size, stride):
    """With a stride every second output, whose gradients are those of all with zeros between."""
    x, kernel, g = (rng.standard_normal(s) for s in (shape, (size, size, 1, shape[-1]), shape))
    low = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
    y, back = jax.vjp(lambda x, k: depthwise(how, stride, x, k), *low)
    np.testing.assert_allclose(y, reference(x, kernel)[:, ::stride, ::stride], atol=1e-5)
    some = np.zeros(shape)
    some[:, ::stride, ::stride] = g[:, ::stride, ::stride]
    found = back(jnp.asarray(g[:, ::stride, ::stride], jnp.float32))
    for got, want in zip(found, gradients(x, kernel, some), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_bfloat16_is_summed_in_float32(rng, how):
    """Operands are rounded, sums are not: the result is the float64 one of rounded operands, rounded once."""
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 6, 6, 3), (7, 7, 1, 3)))
    y, back = jax.vjp(lambda x, k: depthwise(how, 1, x, k), x.astype(jnp.bfloat16), kernel)
    low = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, kernel)]
    want = reference(*low)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8, atol=1e-5)
    of_x, of_kernel = back(y)
    assert of_x.dtype == jnp.bfloat16 and of_kernel.dtype == jnp.float32
    np.testing.assert_allclose(of_kernel, gradients(*low, np.asarray(y, np.float64))[1], rtol=1e-4, atol=1e-3)


def test_layer(rng):
    x = jnp.asarray(rng.standard_normal((2, 4, 5, 3)), jnp.float32)
    params = {"kernel": jnp.asarray(rng.standard_normal((7, 7, 1, 3)), jnp.float32), "bias": jnp.arange(3.0)}
    y = DepthwiseConv(7).apply({"params": params}, x)
    bare = DepthwiseConv(7, use_bias=False).apply({"params": {"kernel": params["kernel"]}}, x)
    np.testing.assert_allclose(y, np.asarray(bare) + np.arange(3), atol=1e-6)
    np.testing.assert_allclose(bare, reference(np.asarray(x), np.asarray(params["kernel"])), atol=1e-5)
    with pytest.raises(UserError, match="unknown implementation of depthwise convolutions 'shift'"):
        depthwise("shift", 1, x, params["kernel"])


@pytest.mark.parametrize(("size", "stride", "dtype"), [(3, 2, "float32"), (1, 1, "bfloat16")])
def test_a_convolution_is_one_of_every_pair_of_channels(rng, size, stride, dtype):
    x, kernel = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((size, size, 3, 7))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.arange(7.0)}
    y = Conv(7, size, stride, dtype=dtype).apply({"params": params}, jnp.asarray(x, jnp.float32))
    if dtype == "bfloat16":
        x, kernel = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, kernel))
    pairs = [sum(reference(x[..., i : i + 1], kernel[:, :, i : i + 1, j : j + 1]) for i in range(3)) for j in range(7)]
    want = np.concatenate(pairs, axis=-1)[:, ::stride, ::stride] + np.arange(7)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8 if dtype == "bfloat16" else 1e-5, atol=2e-5)
