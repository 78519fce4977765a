"""Blocks in their order, and pictures."""

import numpy as np

from vit_jax import explain


def test_blocks_come_in_their_order_and_nothing_else():
    block = lambda i: {"attention": {"attention": i}, "mlp": {"activity": -1}}  # noqa: E731
    tower = {"encoder": {f"block_{i}": block(i) for i in (0, 10, 2, 1)}, "pool": {"attention": -1}}
    assert explain.by_block({"image_tower": tower}) == [0, 1, 2, 10]
    assert explain.by_block({}) == []


def test_heatmap_leaves_out_the_prefix(rng):
    weights = rng.random((2, 7)).astype(np.float32)
    picture = explain.heatmap(weights, (2, 3), prefix=1)
    np.testing.assert_allclose(picture[1], weights[1, 1:].reshape(2, 3) / weights[1, 1:].max(), rtol=1e-6)
