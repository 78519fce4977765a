"""Dropout and stochastic depth: rate, scale, granularity, and nothing without a key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.stochastic import drop_path, dropout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_rate_and_mean(dtype):
    y = np.asarray(dropout(jnp.ones((200, 300), dtype), 0.3, jax.random.key(0)), np.float32)
    assert abs((y == 0).mean() - 0.3) < 0.01
    kept = y[y > 0]
    np.testing.assert_allclose(kept, 1 / 0.7, rtol=1e-2 if dtype == "bfloat16" else 1e-4)
    assert abs(y.mean() - 1) < 0.02


@pytest.mark.parametrize(("rate", "key"), [(0.5, None), (0.0, jax.random.key(0))])
def test_dropout_is_the_identity(rng, rate, key):
    x = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    np.testing.assert_array_equal(dropout(x, rate, key), x)


def test_dropout_gradient_uses_the_same_mask():
    x, key = jnp.ones((7, 9)), jax.random.key(3)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(dropout(x, 0.4, key)))(x), dropout(x, 0.4, key))


@pytest.mark.parametrize("traced", [False, True])
def test_drop_path_drops_whole_examples(traced):
    x = jnp.ones((4000, 2, 3))
    run = jax.jit(drop_path) if traced else drop_path
    y = np.asarray(run(x, 0.25, jax.random.key(0)))
    per_example = y.reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    assert abs((per_example[:, 0] == 0).mean() - 0.25) < 0.03
    np.testing.assert_allclose(per_example.max(), 1 / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(drop_path(x, 0.25, None), x)


def test_drop_path_at_rate_zero_keeps_everything():
    x = jnp.ones((5, 1), jnp.bfloat16)
    np.testing.assert_array_equal(drop_path(x, np.float32(0.0), jax.random.key(0)), x)
