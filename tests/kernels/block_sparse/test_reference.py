"""The reference by hand."""

import numpy as np

from vit_jax.kernels.block_sparse import reference


def test_the_example_of_the_definition():
    x, index = np.array([[1.0, 10.0, 100.0]]), np.array([[0, 2], [1, 2]])
    kernel, bias = np.array([[[3.0, 4.0]], [[5.0, 6.0]]]), np.array([0.5, 0.25])
    assert reference.dense(kernel, index, 3).tolist() == [[3, 0], [0, 4], [5, 6]]
    assert reference.product(x, kernel, index, bias).tolist() == [[503.5, 640.25]]
    dx, d, dbias = reference.gradients(x, kernel, index, np.array([[1.0, 2.0]]))
    assert dx.tolist() == [[3, 8, 17]] and dbias.tolist() == [1, 2]
    assert d.tolist() == [[[1, 20]], [[100, 200]]]


def test_blocks_of_two_and_an_input_twice():
    kernel = np.arange(8.0).reshape(2, 2, 2)
    assert reference.dense(kernel, np.array([[1, 1]]), 4).tolist() == [[0, 0], [0, 0], [4, 6], [8, 10]]
