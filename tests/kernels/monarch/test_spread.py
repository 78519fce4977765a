"""Rows divided among devices by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.monarch.spread import everywhere


def program(x, w):
    return (x @ w, x.shape[0] * jnp.ones(x.shape)), (jnp.sum(x, 0),)


@pytest.mark.parametrize("rows", [8, 5])
def test_rows_are_divided_and_sums_added(rng, rows):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((rows, 3), (3, 2)))
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(2, 2, 2))):
        (y, local), (total,) = jax.jit(lambda x, w: everywhere(program, (x,), (w,)))(x, w)
    assert y.shape == (rows, 2)
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, x.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(local, 2)


def test_one_device_runs_the_program_itself(rng):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((5, 3), (3, 2)))
    (y, local), _ = everywhere(program, (x,), (w,))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(local, 5)
