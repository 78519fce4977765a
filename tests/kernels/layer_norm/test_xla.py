"""The formula against float64 NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.layer_norm import layer_norm


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_equals_float64(rng, offset):
    x, scale, bias = rng.standard_normal((3, 5, 7)) + offset, rng.standard_normal(7), rng.standard_normal(7)
    x = np.asarray(x, np.float32).astype(np.float64)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias
    args = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias)]
    beside, got = jax.jit(functools.partial(layer_norm, epsilon=1e-6))(*args)
    np.testing.assert_array_equal(beside, args[0])
    np.testing.assert_allclose(got, want, atol=2e-6 if not offset else 2e-4)
