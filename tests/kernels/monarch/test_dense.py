"""The multiplied-out weight; its product is in the contract suite."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.monarch import dense, reference
from vit_jax.kernels.monarch.layout import Sizes


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("blocked", [False, True])
def test_rows_follow_the_parts_and_columns_the_blocks(rng, parts, blocked):
    kernel_1, kernel_2 = (rng.standard_normal(s).astype("float32") for s in ((2, 6, 4), (3, 5, 4)))
    sizes = Sizes.of(8, kernel_1, kernel_2, None, parts)
    weight = dense.weight(sizes, jnp.asarray(kernel_1), jnp.asarray(kernel_2), blocked)
    want = reference.to_parts(reference.dense(kernel_1, kernel_2), 3 if blocked else 1)
    np.testing.assert_allclose(weight, reference.to_parts(want.T, parts).T, rtol=1e-5, atol=1e-6)
