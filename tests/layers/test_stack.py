"""The fields of a tower reach its blocks, and are written once."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax import models
from vit_jax.layers.block import Block, ResidualBlock
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.layers.stack import Stack, TransformerStack, common
from vit_jax.models.coca import TextDecoder

TOWERS = (models.ViT, models.Mixer, models.MonarchMixer, models.TextTransformer, TextDecoder)
CHANGED = {
    "dropout": 0.25, "layer_scale": 0.5, "activation": "relu", "norm_epsilon": 0.125, "mlp_linear": LowRank(2),
    "dtype": "bfloat16", "mlp_dim": 5, "qkv_linear": LowRank(3), "out_linear": LowRank(4), "heads": 4,
}  # fmt: skip


def names(cls):
    return {f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}


class Tower(TransformerStack):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return self.stack(functools.partial(Block, causal=True), name="encoder")(x)


def test_every_tower_has_them():
    for tower in TOWERS:
        assert issubclass(tower, Stack) and names(Stack) <= names(tower)
        shared = {name for name in vars(tower).get("__annotations__", {}) if name in names(TransformerStack)}
        defaults = {f.name: f.default for f in dataclasses.fields(TransformerStack)}
        own = {f.name: f.default for f in dataclasses.fields(tower)}
        assert all(own[name] != defaults[name] or name in ("qkv_linear", "out_linear") for name in shared), tower


def test_they_reach_the_blocks():
    made = Tower(**CHANGED).with_fields(Block)()
    for name, value in CHANGED.items():
        assert getattr(made, name) == value != getattr(Block(mlp_dim=1), name), name
    plain = Stack(mlp_dim=7).with_fields(ResidualBlock)()
    assert plain.mlp_dim == 7 and plain.adapter is None
    assert names(ResidualBlock) <= names(Stack)


def test_what_two_modules_have_in_common():
    tower = Tower(depth=3, heads=2, rotary=None, name="tower")
    assert set(common(tower, Block)) == (names(Block) & names(Tower)) and common(tower, Block)["heads"] == 2
    assert "depth" not in common(tower, Block) and "width" not in common(tower, Block)


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": "dots"}])
def test_a_tower_of_ones_own(options):
    x = jnp.ones((1, 3, 8))
    tower = Tower(depth=3, heads=2, mlp_dim=12, drop_path=0.5, **options)
    params = jax.jit(tower.init)(jax.random.key(0), x)["params"]
    assert set(params["encoder"]) == {"block_0", "block_1", "block_2", "norm"}
    later = x.at[:, 2].set(0.0)
    one, other = (jax.jit(tower.apply)({"params": params}, y) for y in (x, later))
    assert jnp.array_equal(one[:, :2], other[:, :2]) and not jnp.array_equal(one[:, 2], other[:, 2])
