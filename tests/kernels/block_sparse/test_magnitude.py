"""The largest blocks against NumPy, and the gradient that leaves zero blocks alone."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.block_sparse.magnitude import blocks_of, kept, largest, prune

KERNEL = np.array([[1, -2, 0, 3], [0, 0, 0, 0], [4, 0, 1, 1], [0, 5, 0, 0]], np.float32)


def test_by_hand():
    assert blocks_of(KERNEL, 2)[1, :, 0].tolist() == [[4, 0], [0, 5]]
    assert largest(KERNEL, 2, 1).tolist() == [[1], [0]]
    assert largest(KERNEL, 2, 2).tolist() == [[0, 1], [0, 1]] and largest(KERNEL, 2, 2).dtype == jnp.int32
    assert prune(KERNEL, 2, 1).tolist() == [[0, 0, 0, 3], [0, 0, 0, 0], [4, 0, 0, 0], [0, 5, 0, 0]]
    assert kept(KERNEL, np.array([[1], [0]])).tolist() == [[[4, 0, 0, 3], [0, 5, 0, 0]]]


def test_norms_decide_ascending_in_either_type(rng):
    kernel = rng.standard_normal((24, 12)).astype(np.float32)
    for dtype in ("float32", "bfloat16"):
        low = jnp.asarray(kernel, dtype)
        for j, row in enumerate(np.asarray(largest(low, 4, 3))):
            wide = np.asarray(low, np.float64)[:, 4 * j : 4 * j + 4].reshape(6, 16)
            assert row.tolist() == sorted(np.argsort(-np.linalg.norm(wide, axis=1))[:3])


def test_gradients_go_to_kept_blocks_that_are_not_zero(rng):
    kernel, g = KERNEL.copy(), rng.standard_normal((1, 2, 4)).astype(np.float32)
    kernel[:, :2] = 0
    got = jax.jit(jax.grad(lambda k: jnp.sum(kept(k, largest(k, 2, 1)) * g)))(kernel)
    want = np.zeros((4, 4), np.float32)
    want[:2, 2:] = g[0, :, 2:]
    np.testing.assert_array_equal(got, want)


def test_nan_counts_as_largest():
    kernel = KERNEL.copy()
    kernel[1, 0] = np.nan
    assert largest(kernel, 2, 1)[0].tolist() == [0]
