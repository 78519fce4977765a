"""The block-sparse case of the kernel bench."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.block_sparse.case import BlockSparse
from vit_jax.types import UserError


@pytest.mark.parametrize(("inputs", "outputs", "block"), [(30, 64, 32), (64, 30, 32), (64, 64, 0)])
def test_sizes_that_do_not_divide_are_refused(inputs, outputs, block):
    with pytest.raises(UserError, match=f"blocks of {block} do not divide {inputs} x {outputs}"):
        BlockSparse(block=block)(5, inputs, outputs, jnp.float32)


def test_the_floor_counts_the_blocks_there_are():
    case = BlockSparse(0.5, 8)(5, 32, 64, jnp.bfloat16)
    assert (case.flops, case.bytes) == (2 * 5 * 16 * 64, 2 * (5 * (32 + 64) + 16 * 64))
    assert np.mean(np.asarray(case.weight) != 0) == 0.5


def test_a_pattern_that_is_data():
    known, data = (BlockSparse(0.5, 8, known)(5, 32, 64, jnp.float32) for known in (True, False))
    assert len(known.parameters) == 1 and len(data.parameters) == 2
    for name in data.here():
        got, want = (jax.jit(functools.partial(c.run, name))(c.x, *c.parameters) for c in (data, known))
        np.testing.assert_allclose(got, want, atol=1e-5)
