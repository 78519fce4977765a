"""Low-rank maps against their dense ones, and the truncated SVD."""

from __future__ import annotations

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.linear.spec_contract import check_layer, check_no_bias, check_variance, initialise
from vit_jax import config
from vit_jax.layers.linear import xavier_uniform_parts
from vit_jax.layers.linear.low_rank import LowRank, rows_of
from vit_jax.types import UserError


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("shape", "features", "dtype"),
    [
        ((5, 7), 3, "float32"),
        ((2, 3, 6), 11, "float32"),
        ((2, 3, 6), 11, "bfloat16"),
        pytest.param((5, 7), 3, "bfloat16", marks=pytest.mark.slow),
        pytest.param((1, 2, 1, 9), 9, "float32", marks=pytest.mark.slow),
        pytest.param((1, 2, 1, 9), 9, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_layer_is_its_dense_map(rng, shape, features, dtype):
    check_layer(LowRank(3), rng, shape, features, dtype)
    check_no_bias(LowRank(2), shape[-1], features)


def test_parameters_and_axes():
    layer, params = initialise(LowRank(4), 10, 6)
    assert jax.tree.map(jnp.shape, params) == {"kernel_1": (10, 4), "kernel_2": (4, 6), "bias": (6,)}
    boxed = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 10)))["params"]
    assert boxed["kernel_1"].names == ("embed", None) and boxed["kernel_2"].names == (None, "mlp")


@pytest.mark.parametrize(
    ("inputs", "features", "init"), [(8, 24, nn.initializers.xavier_uniform()), (24, 8, nn.initializers.normal(0.02))]
)
def test_outputs_start_with_the_variance_of_the_dense_map(inputs, features, init):
    check_variance(LowRank(4), inputs, features, init)


def test_second_factor_is_a_scaled_part_of_the_dense_draw():
    key, init = jax.random.key(1), xavier_uniform_parts(3)
    got = rows_of(init, 12)(key, (3, 18))
    np.testing.assert_allclose(got, init(key, (12, 18))[:3] * 2, rtol=1e-6)
    _, params = initialise(LowRank(3), 12, 5, kernel_init=nn.initializers.zeros)
    assert not np.any(params["kernel_2"]) and np.std(params["kernel_1"]) > 0.1


def test_from_dense_is_the_nearest_of_its_rank(rng):
    kernel, bias = rng.standard_normal((9, 6)).astype(np.float32), jnp.arange(6.0)
    params = LowRank(2).from_dense(kernel, bias)
    assert {k: (v.shape, str(v.dtype)) for k, v in params.items()} == {
        "kernel_1": ((9, 2), "float32"), "kernel_2": ((2, 6), "float32"), "bias": ((6,), "float32"),
    }  # fmt: skip
    low, same = LowRank(2).to_dense(params)
    lost = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)[2:]
    np.testing.assert_allclose(np.linalg.norm(kernel - low), np.linalg.norm(lost), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(params["kernel_1"]), np.linalg.norm(params["kernel_2"]), rtol=1e-5)
    np.testing.assert_array_equal(same, bias)
    full = LowRank(6).to_dense(LowRank(6).from_dense(kernel, None))[0]
    np.testing.assert_allclose(full, kernel, atol=1e-6)


def test_values_and_sentences(rng):
    assert LowRank(8) == LowRank(8) != LowRank(4) and hash(LowRank(8)) == hash(LowRank(8))
    table = config.Choice({"low_rank": LowRank})
    assert config.parse(Annotated[Any, table], "low_rank(32)") == LowRank(32)
    with pytest.raises(UserError, match=r"linear\.rank=0 is not allowed"):
        config.parse(Annotated[Any, table], "low_rank(rank=0)", "linear")
    for use in (lambda: initialise(LowRank(), 8, 100), lambda: LowRank().from_dense(np.zeros((8, 100)), None)):
        with pytest.raises(UserError, match="rank=64 is more than a map 8 -> 100 can have; use at most 8"):
            use()
