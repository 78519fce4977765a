"""The dense weight against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.block_sparse import dense, reference


@pytest.mark.parametrize("known", [True, False])
def test_blocks_in_place(rng, known):
    kernel, index = rng.standard_normal((2, 3, 9)).astype("float32"), np.array([[2, 0], [1, 1], [3, 1]])
    for dtype in ("float32", "bfloat16"):
        low = jnp.asarray(kernel, dtype)
        if known:
            got = jax.jit(lambda kernel: dense.weight(kernel, index, 12))(low)
        else:
            got = jax.jit(dense.weight, static_argnums=2)(low, jnp.asarray(index), 12)
        assert got.dtype == dtype
        want = reference.dense(np.asarray(low, np.float32), index, 12)
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
