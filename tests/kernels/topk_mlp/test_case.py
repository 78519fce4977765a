"""The case of the product after TopK."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.topk_mlp.case import TopKMLP
from vit_jax.types import UserError


@pytest.mark.parametrize("k", [1, 7, 32, 50])
def test_each_token_has_its_own_k_units(k):
    case = TopKMLP(k)(5, 32, 64, jnp.float32)
    assert (np.count_nonzero(case.x, axis=1) == min(k, 32)).all()
    assert k >= 32 or (np.asarray(case.x[0] != 0) != np.asarray(case.x[1] != 0)).any()
    for name in case.here():
        got = jax.jit(functools.partial(case.run, name))(case.x, *case.parameters)
        np.testing.assert_allclose(got, np.asarray(case.x) @ np.asarray(case.weight), atol=1e-5)
    assert case.here() == ["gather", "dense"]


def test_the_floor_counts_active_units_alone():
    case = TopKMLP(3)(5, 32, 64, jnp.bfloat16)
    assert (case.flops, case.bytes) == (2 * 5 * 3 * 64, 2 * (5 * (32 + 64) + 15 * 64))
    assert TopKMLP()(5, 32, 64, jnp.bfloat16).bytes == 2 * (5 * (32 + 64) + 32 * 64)


def test_no_units_are_refused():
    with pytest.raises(UserError, match="k=0 is not a number of units"):
        TopKMLP(0)(5, 32, 64, jnp.float32)
