"""Pooling against NumPy and as a symmetric function of the tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.layers.pool import AttentionPool, average


def test_average_sums_in_float32():
    x = jnp.ones((1, 1000, 1), jnp.bfloat16) * 1.0078125
    assert average(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(average(x), jnp.full((1, 1), 1.0078125, jnp.bfloat16))


def test_attention_pool_ignores_order_and_masked_tokens(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    module = AttentionPool(2, 16)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
    apply = jax.jit(module.apply)
    full = apply(params, x)
    assert full.shape == (2, 8)
    np.testing.assert_allclose(apply(params, x[:, ::-1]), full, atol=1e-5)
    mask = jnp.asarray([[True] * 3 + [False] * 2] * 2)
    masked = apply(params, x, mask)
    np.testing.assert_allclose(masked, apply(params, x[:, :3]), atol=1e-5)
    assert float(jnp.max(jnp.abs(masked - full))) > 1e-3
