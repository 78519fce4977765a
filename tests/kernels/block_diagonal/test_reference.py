"""The float64 reference, worked out by hand."""

import numpy as np

from vit_jax.kernels.block_diagonal import reference

KERNEL = np.array([[[1, 2, 3], [4, 5, 6]], [[1, 0, -1], [0, 2, 0]]])
X = np.array([[1, 2, 3, 4]])


def test_an_example_by_hand():
    np.testing.assert_array_equal(reference.product(X, KERNEL), [[9, 12, 15, 3, 8, -3]])
    np.testing.assert_array_equal(reference.product(X, KERNEL, np.arange(6)), [[9, 13, 17, 6, 12, 2]])


def test_its_gradients():
    g = np.array([[1, 0, 0, 0, 1, 2]])
    dx, dkernel, dbias = reference.gradients(X, KERNEL, g)
    np.testing.assert_array_equal(dx, [[1, 4, -2, 2]])
    np.testing.assert_array_equal(dkernel, [[[1, 0, 0], [2, 0, 0]], [[0, 3, 6], [0, 4, 8]]])
    np.testing.assert_array_equal(dbias, [1, 0, 0, 0, 1, 2])
