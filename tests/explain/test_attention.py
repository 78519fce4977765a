"""Attention maps and rollout against NumPy."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax import explain, models
from vit_jax.types import UserError


def make(name="vit", **fields):
    model = models.create(name, num_classes=3, patch=4, width=16, depth=3, mlp_dim=32, **fields)
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(1), images)["params"]), images


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [False, True])
def test_maps_are_distributions_of_every_layer(scan):
    model, params, images = make(heads=2, scan=scan)
    attention = jax.jit(lambda params: explain.attention_maps(model, params, images))
    maps = attention(params)
    assert maps.shape == (3, 2, 2, 7, 7)  # 2x3 patches and the cls token
    np.testing.assert_allclose(maps.sum(-1), np.ones((3, 2, 2, 7)), atol=1e-5)
    first = params["encoder"]["block_0"]["attention"]["qkv"]["kernel"]
    params["encoder"]["block_0"]["attention"]["qkv"]["kernel"] = first * 0  # equal keys: uniform attention
    changed = attention(params)
    np.testing.assert_allclose(changed[0], np.full((2, 2, 7, 7), 1 / 7), atol=1e-6)
    assert np.abs(maps[0] - 1 / 7).max() > 1e-3


def test_rollout_is_the_matrix_product(rng):
    maps = rng.random((4, 2, 3, 5, 5))
    maps /= maps.sum(-1, keepdims=True)
    found = explain.rollout(maps.astype(np.float32))
    for b in range(2):
        total = np.eye(5)
        for layer in range(4):
            mixed = maps[layer, b].mean(0) + np.eye(5)
            total = mixed / mixed.sum(1, keepdims=True) @ total
        np.testing.assert_allclose(found[b], total, atol=1e-6)


def test_blocks_come_in_their_order_and_nothing_else():
    block = lambda i: {"attention": {"attention": i}, "mlp": {"activity": -1}}  # noqa: E731
    tower = {"encoder": {f"block_{i}": block(i) for i in (0, 10, 2, 1)}, "pool": {"attention": -1}}
    assert explain.by_block({"image_tower": tower}) == [0, 1, 2, 10]
    assert explain.by_block({}) == []


def test_heatmap_leaves_out_the_prefix(rng):
    weights = rng.random((2, 7)).astype(np.float32)
    picture = explain.heatmap(weights, (2, 3), prefix=1)
    np.testing.assert_allclose(picture[1], weights[1, 1:].reshape(2, 3) / weights[1, 1:].max(), rtol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_a_picture_is_bright_where_the_output_comes_from(pool, tmp_path, monkeypatch):
    """Attention that is uniform but for one patch, which all tokens look at in every layer."""
    model, params, images = make(heads=2, pool=pool, registers=1)
    prefix = 1 + (pool == "cls")
    maps = np.full((3, 2, 2, 6 + prefix, 6 + prefix), 0.01, np.float32)
    maps[..., prefix + 4] = 1 - 0.01 * (5 + prefix)  # the second of three in the second row
    monkeypatch.setattr(explain.attention, "attention_maps", lambda *_: maps)
    drawn = {}
    monkeypatch.setattr(explain.attention.plots, "contact_sheet", lambda sections, path: drawn.update(sections))
    explain.draw(model, params, images, tmp_path / "x.png", ["a", "b"])
    (seen, names), (looked, _) = drawn.values()
    assert names == ["a", "b"] and seen.shape == looked.shape == (2, 8, 12, 3)
    light = looked.sum((0, 3)) / seen.sum((0, 3))
    assert light.argmax() in {y * 12 + x for y in range(4, 8) for x in range(4, 8)}
    assert light.max() > 4 * light[0, 0]


@pytest.mark.thorough
def test_a_mixer_has_none():
    model, params, images = make("mixer", token_dim=8)
    with pytest.raises(UserError, match="Mixer has no attention"):
        explain.attention_maps(model, params, images)


def test_reduced_tokens_have_no_one_picture():
    model, params, images = make(heads=2, reduce="merge(1)")
    maps = lambda m: jax.eval_shape(lambda p: explain.attention_maps(m, p, images), params)  # noqa: E731
    with pytest.raises(UserError, match="blocks that see 7 down to 5 tokens has no one picture; set reduce=None"):
        maps(model)
    assert maps(model.clone(reduce=None)).shape == (3, 2, 2, 7, 7)
