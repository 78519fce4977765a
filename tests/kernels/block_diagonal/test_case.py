"""The block-diagonal case of the kernel bench."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.block_diagonal.case import BlockDiagonal
from vit_jax.types import UserError


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="5 blocks do not divide 32 x 60 evenly"):
        BlockDiagonal(5)(5, 32, 60, jnp.float32)


def test_it_is_its_dense_product_and_counts_the_blocks():
    case = BlockDiagonal()(5, 32, 64, jnp.float32)
    for name in ("xla", "dense"):
        got = jax.jit(functools.partial(case.run, name))(case.x, *case.parameters)
        np.testing.assert_allclose(got, np.asarray(case.x) @ np.asarray(case.weight), atol=1e-5)
    assert case.here() == ["xla", "dense"]
    assert (case.flops, case.bytes) == (2 * 5 * 4 * 8 * 16, 4 * (5 * (32 + 64) + 4 * 8 * 16))
