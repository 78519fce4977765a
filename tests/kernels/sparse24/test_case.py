"""The 2:4 case of the kernel bench."""

import jax.numpy as jnp
import pytest

from vit_jax.kernels.sparse24.case import Sparse24
from vit_jax.types import UserError


def test_inputs_that_do_not_pack_are_refused():
    with pytest.raises(UserError, match="30 inputs are no multiple of 8"):
        Sparse24()(5, 30, 64, jnp.float32)


def test_the_floor_counts_packed_bytes_and_all_multiplications():
    case = Sparse24()(5, 32, 64, jnp.bfloat16)
    assert case.flops == 2 * 5 * 32 * 64
    assert case.bytes == 2 * 5 * (32 + 64) + 32 * 64 * (64 / 64 + 8 / 64)  # 16 of 32 bits a weight, and 2 of index
