"""The float64 reference, worked out by hand."""

import numpy as np

from vit_jax.kernels.sparse24 import reference


def test_an_example_by_hand():
    # Two outputs, two groups: byte = group 0 + 16 * group 1; group = first place + 4 * second place.
    values = np.array([[1, 2], [3, 4], [5, 6], [7, 8.0]])
    index = np.array([[(0 + 4 * 3) + 16 * (1 + 4 * 2), (2 + 4 * 3) + 16 * (0 + 4 * 1)]], np.uint8)
    kernel = np.array([[1, 0, 0, 5, 0, 3, 7, 0], [0, 0, 2, 6, 4, 8, 0, 0.0]]).T
    np.testing.assert_array_equal(reference.unpack(values, index), kernel)
    x = np.arange(8.0)[None]
    y = reference.sparse24(x, values, index, np.array([0.5, 1]), np.array([2.0, 1]))
    np.testing.assert_array_equal(y, [[2 * (15 + 15 + 42) + 0.5, 4 + 18 + 16 + 40 + 1]])


def test_the_pattern_that_keeps_most():
    kernel = np.array([[1, -3, 2, 0.5], [0, 0, 0, 0], [2, 2, 2, -2]]).T
    np.testing.assert_array_equal(reference.mask(kernel).T, [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
