"""Turning pairs of channels against complex numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.attention.rotation import Rotation


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["all heads", "each head"])
def test_pairs_are_complex_numbers_that_are_multiplied(rng, neighbours, own):
    angle = rng.uniform(-4, 4, (5, 3, 4) if own else (5, 4))
    x = rng.standard_normal((2, 7, 3, 8)).astype("float32")
    run = lambda a, x: Rotation.of(a, 7, neighbours=neighbours)(x)  # noqa: E731
    got = np.asarray(jax.jit(run)(jnp.asarray(angle, jnp.float32), x))
    a, b = (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(0, 4), slice(4, 8))
    y = (x[:, 2:, :, a] + 1j * x[:, 2:, :, b].astype("float64")) * np.exp(1j * angle.reshape(5, -1, 4))
    np.testing.assert_allclose(got[:, 2:, :, a] + 1j * got[:, 2:, :, b], y, atol=1e-5)
    np.testing.assert_array_equal(got[:, :2], x[:, :2])  # class token and register stay


def test_the_type_is_kept_and_angles_have_a_gradient(rng):
    x = jnp.asarray(rng.standard_normal((1, 2, 1, 2)), jnp.bfloat16)
    angle = jnp.asarray(rng.uniform(-1, 1, (2, 1)), jnp.float32)
    assert Rotation.of(angle, 2, neighbours=True)(x).dtype == x.dtype
    wide = x.astype(jnp.float32)
    found = jax.grad(lambda a: jnp.sum(Rotation.of(a, 2, neighbours=True)(wide)))(angle)
    a, b = np.asarray(wide, np.float64)[0, :, 0].T
    want = -a * np.sin(angle[:, 0]) - b * np.cos(angle[:, 0]) + a * np.cos(angle[:, 0]) - b * np.sin(angle[:, 0])
    np.testing.assert_allclose(found[:, 0], want, atol=1e-5)
