"""Rounding to int8 against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.int8.rounding import LEAST, quantise

jitted = jax.jit(quantise, static_argnums=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axis", [0, -1])
def test_every_number_is_at_most_half_a_step_away(rng, dtype, axis):
    x = jnp.asarray(rng.standard_normal((33, 7)) * 10.0 ** rng.integers(-8, 9, (33, 7)), dtype)
    steps, scale = jitted(x, axis)
    x = np.asarray(x, np.float64)
    assert steps.dtype == jnp.int8 and scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, np.abs(x).max(axis, keepdims=True) / 127, rtol=2e-7)
    steps, scale = np.asarray(steps, np.float64), np.asarray(scale, np.float64)
    assert np.all(np.abs(x / scale - steps) <= 0.5 + 127 * 2.0**-22)
    np.testing.assert_array_equal(np.abs(steps).max(axis), 127)


def test_ties_go_to_the_even_step_and_the_steps_themselves_stay():
    steps, scale = jitted(jnp.asarray([[127, 0.5, 1.5, -0.5, -2.5, -126, 3]]), -1)
    np.testing.assert_array_equal(steps, [[127, 0, 2, 0, -2, -126, 3]])
    assert scale == 1


def test_zeros_the_tiny_and_what_is_not_finite():
    """Each row by itself: the others are as if they were alone."""
    x = jnp.asarray([[0, 0.0], [LEAST / 2, 0], [1e-30, -1e-30], [jnp.nan, 1], [1, -jnp.inf], [3e38, -3e38]])
    steps, scale = jitted(x, -1)
    np.testing.assert_array_equal(steps[:3], [[0, 0], [0, 0], [127, -127]])
    np.testing.assert_array_equal(steps[5], [127, -127])
    np.testing.assert_allclose(scale[:, 0], [1, 1, 1e-30 / 127, np.nan, np.nan, 3e38 / 127], rtol=1e-6)
