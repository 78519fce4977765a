"""The Monarch case of the kernel bench."""

import jax.numpy as jnp
import pytest

from vit_jax.kernels.monarch.case import Monarch
from vit_jax.types import UserError


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="5 blocks do not divide 32 x 64 evenly"):
        Monarch(5)(5, 32, 64, jnp.float32)


def test_the_floor_is_that_of_the_factors():
    case = Monarch(2)(5, 32, 64, jnp.bfloat16)
    weights = 2 * 16 * 16 + 2 * 32 * 16
    assert (case.flops, case.bytes) == (2 * 5 * weights, 2 * (5 * (32 + 64) + weights))
