"""The float64 reference, worked out by hand."""

import numpy as np

from vit_jax.kernels.topk_mlp import reference

KERNEL = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])
H = np.array([[0, 2, 0, 1], [0, 0, 0, 0], [-1, 0, 0, 0]])


def test_of_equal_units_the_first_and_none_below_zero():
    z = np.array([[1, 3, 3, 2, 3], [-1, 0, -2, 4, -3], [2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(reference.topk(z, 2), [[0, 3, 3, 0, 0], [0, 0, 0, 4, 0], [2, 2, 0, 0, 0]])
    np.testing.assert_array_equal(reference.topk(z, 9), np.maximum(z, 0))


def test_the_product():
    np.testing.assert_array_equal(reference.product(H, KERNEL), [[13, 16], [0, 0], [-1, -2]])
    np.testing.assert_array_equal(reference.product(H, KERNEL, np.array([1, 0])), [[14, 16], [1, 0], [0, -2]])


def test_its_gradients():
    g = np.array([[1, 0], [0, 1], [1, 1]])
    dh, dkernel, dbias = reference.gradients(H, KERNEL, g)
    np.testing.assert_array_equal(dh, [[1, 3, 5, 7], [2, 4, 6, 8], [3, 7, 11, 15]])
    np.testing.assert_array_equal(dkernel, [[-1, -1], [2, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(dbias, [2, 2])
