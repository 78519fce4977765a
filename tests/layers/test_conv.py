"""Depthwise convolution against loops in float64, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.conv import IMPLEMENTATIONS, DepthwiseConv, depthwise
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
@pytest.mark.parametrize(("shape", "size"), [((3, 5, 4, 6), 3), ((1, 2, 3, 5), 7)])
def test_equals_the_sum_in_float64(rng, how, shape, size):
    x, g, kernel = (rng.standard_normal(s) for s in (shape, shape, (size, size, 1, shape[-1])))
    low = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
    y, back = jax.vjp(lambda x, k: depthwise(how, x, k), *low)
    np.testing.assert_allclose(y, reference(x, kernel), atol=1e-5)
    for got, want in zip(back(jnp.asarray(g, jnp.float32)), gradients(x, kernel, g), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_bfloat16_is_summed_in_float32(rng, how):
    """Operands are rounded, sums are not: the result is the float64 one of rounded operands, rounded once."""
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 6, 6, 3), (7, 7, 1, 3)))
    y, back = jax.vjp(lambda x, k: depthwise(how, x, k), x.astype(jnp.bfloat16), kernel)
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
        depthwise("shift", x, params["kernel"])
