"""The blocks in the dense weight."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.block_diagonal import dense


def test_what_is_not_finite_stays_in_its_block(rng):
    kernel = jnp.asarray(rng.standard_normal((2, 2, 3)), jnp.float32).at[0, 0, 0].set(jnp.inf)
    weight = dense.weight(kernel)
    want = np.zeros((4, 6), np.float32)
    want[:2, :3], want[2:, 3:] = kernel[0], kernel[1]
    np.testing.assert_array_equal(weight, want)


def test_the_gradient_takes_the_blocks_alone(rng):
    g = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    (got,) = jax.vjp(dense.weight, jnp.ones((2, 2, 3)))[1](g)
    np.testing.assert_array_equal(got, [g[:2, :3], g[2:, 3:]])
