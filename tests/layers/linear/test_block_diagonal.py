"""Block-diagonal maps against a loop over blocks and their dense maps."""

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
from vit_jax.layers.linear.block_diagonal import BlockDiagonal, block_size
from vit_jax.types import UserError

SIZES = [((5, 8), 12, 4), ((2, 3, 12), 4, 4), ((1, 1, 2, 7), 10, 3), ((3, 10), 7, 3), ((4, 6), 5, 1)]


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("shape", "features", "nblocks"), SIZES)
def test_layer_is_its_dense_map(rng, shape, features, nblocks, dtype):
    check_layer(BlockDiagonal(nblocks), rng, shape, features, dtype)


@pytest.mark.first(2)
@pytest.mark.parametrize(("shape", "features", "nblocks"), SIZES)
def test_dense_map_is_the_blocks_in_place(rng, shape, features, nblocks):
    spec, inputs = BlockDiagonal(nblocks), shape[-1]
    check_no_bias(spec, inputs, features)
    _, params = initialise(spec, inputs, features)
    p, q = block_size(inputs, features, nblocks)
    want = np.zeros((inputs, features), np.float32)
    for i in range(inputs):
        for o in range(features):
            if i // p == o // q:
                want[i, o] = params["kernel"][i // p, i % p, o % q]
    np.testing.assert_array_equal(spec.to_dense(params)[0][:inputs], want)
    back = spec.from_dense(want, params["bias"])
    np.testing.assert_array_equal(spec.to_dense(back)[0], spec.to_dense(params)[0])
    noise = rng.standard_normal(want.shape).astype(np.float32)  # what lies beside the blocks is dropped
    dropped = spec.from_dense(np.where(want == 0, noise, want), None)
    np.testing.assert_array_equal(dropped["kernel"], back["kernel"])


def test_who_computes_changes_neither_parameters_nor_the_result(rng):
    x = jnp.asarray(rng.standard_normal((5, 10)), jnp.float32)
    layer, params = initialise(BlockDiagonal(3), 10, 7)
    for name in ("xla", "dense"):
        other, same = initialise(BlockDiagonal(3, implementation=name), 10, 7)
        np.testing.assert_array_equal(same["kernel"], params["kernel"])
        y = jax.jit(layer.apply)({"params": params}, x)
        np.testing.assert_allclose(jax.jit(other.apply)({"params": params}, x), y, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="unknown implementation of block-diagonal product 'xli'; did you mean 'xla'"):
        initialise(BlockDiagonal(3, implementation="xli"), 10, 7)


VARIANCES = [
    (8, 24, 4, xavier_uniform_parts(3)),
    (24, 9, 3, nn.initializers.xavier_uniform()),
    (10, 18, 4, nn.initializers.normal(0.02)),
]


@pytest.mark.parametrize(("inputs", "features", "nblocks", "init"), VARIANCES)
def test_outputs_start_with_the_variance_of_the_dense_map(inputs, features, nblocks, init):
    check_variance(BlockDiagonal(nblocks), inputs, features, init)


def test_blocks_are_scaled_blocks_of_the_dense_draw():
    key, init = jax.random.key(2), nn.initializers.lecun_normal()
    layer = BlockDiagonal(3)(7, name="map", kernel_init=lambda _, *rest: init(key, *rest))
    kernel = nn.meta.unbox(jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 8))))["params"]["kernel"]
    dense = init(key, (8, 7))
    np.testing.assert_allclose(kernel[0], dense[:3, :3] * (8 / 3) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(kernel[2, :2, :1], dense[6:, 6:] * 2, rtol=1e-6)  # two inputs are real


def test_values_and_sentences():
    assert BlockDiagonal(8) == BlockDiagonal(8) != BlockDiagonal() and hash(BlockDiagonal(8)) == hash(BlockDiagonal(8))
    table = config.Choice({"block_diagonal": BlockDiagonal})
    assert config.parse(Annotated[Any, table], "block_diagonal(4)") == BlockDiagonal(4)
    with pytest.raises(UserError, match="nblocks=0 is not allowed"):
        BlockDiagonal(0)
    with pytest.raises(UserError, match="nblocks=4 leaves a block without any of the 5 inputs; use at most 3"):
        initialise(BlockDiagonal(4), 5, 8)
    with pytest.raises(UserError, match="any of the 6 inputs; use at most 3"):
        initialise(BlockDiagonal(4), 6, 8)
    with pytest.raises(UserError, match="without any of the 2 outputs; use at most 2"):
        initialise(BlockDiagonal(4), 8, 2)
