"""Sizes and the reorderings of parameters; sentences about shapes are in the contract suite."""

import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.monarch.layout import Sizes, blocked_bias, first, first_back


def test_sizes():
    sizes = Sizes.of(24, np.zeros((2, 6, 12)), np.zeros((3, 5, 4)), np.zeros(15), 4)
    assert sizes == Sizes(K=2, P=12, T=2, L=3, S=5, parts=4)
    assert (sizes.inputs, sizes.outputs) == (24, 15)


def test_reordered_rows_and_columns_and_back(rng):
    sizes = Sizes(K=2, P=12, T=2, L=3, S=5, parts=4)
    kernel = jnp.asarray(rng.standard_normal((2, 6, 12)))
    chunks = first(sizes, kernel)
    assert chunks.shape == (2, 3, 2, 4, 3)
    # Row t * L + l and column a * parts + j of block 1, for t, l = 1, 2 and a, j = 2, 1.
    assert chunks[1, 2, 1, 1, 2] == kernel[1, 1 * 3 + 2, 2 * 4 + 1]
    np.testing.assert_array_equal(first_back(sizes, chunks), kernel)


def test_bias_in_blocked_order():
    sizes = Sizes(K=1, P=1, T=1, L=3, S=2, parts=1)
    np.testing.assert_array_equal(blocked_bias(sizes, jnp.arange(6)), [0, 3, 1, 4, 2, 5])
