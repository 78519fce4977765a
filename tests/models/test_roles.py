"""Roles of every family's parameters: decay, depth and head as they were when regular expressions read them."""

from __future__ import annotations

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models import ImageModel
from vit_jax.models.roles import Role, roles
from vit_jax.optim import masks

GOLDEN = (pathlib.Path(__file__).parent / "golden" / "roles.txt").read_text().splitlines()
"""``case path decay layers-above head-or-not``, by the patterns over names that there were before roles; but for CoCa's
``embedding_pool``, which they took for an embedding."""
TOWER = {"depth": 2, "width": 16, "heads": 2, "mlp_dim": 32}
IMAGE, TEXT = {**TOWER, "patch": 8}, {**TOWER, "vocab_size": 20, "length": 6, "end_id": 1}
SPARSE = {"qkv_linear": "block_diagonal(2)", "mlp_linear": "sparse24"}
LINEAR = {"qkv_linear": "monarch(2)", "out_linear": "low_rank(4)", "mlp_linear": "block_sparse(0.5, block=8, rank=2)"}
MIXER = {"depth": 2, "width": 16, "mlp_dim": 32, "patch": 8}


def pair(image, text, **fields):
    return {"image_tower": {"name": "vit", **IMAGE, **image}, "text_tower": {**TEXT, **text}, **fields}


CASES = {
    "vit": ("vit", {**IMAGE, "pool": "map", "registers": 2, "layer_scale": 0.1, "depth": 11}),
    "cls": ("vit", {**IMAGE, "pool": "cls_gap", "pre_norm": True, "pre_logits": 8}),
    "hybrid": ("vit", {**IMAGE, "patch": 1, "stem": (1, 1), "positions": "sincos2d"}),
    "structured": ("vit", IMAGE | LINEAR),
    "sparse": ("vit", IMAGE | SPARSE),
    "mixer": ("mixer", {**MIXER, "token_dim": 8}),
    "m2": ("monarch_mixer", MIXER),
    "clip": ("two_tower", pair({}, {"depth": 3}, embed_dim=8)),
    "siglip": (
        "two_tower",
        pair({"pool": "map"}, {"pool": "last"}, embed_dim=16, image_head="none", text_head="biased", bias=-10.0),
    ),
    "coca": (
        "coca",
        pair({"final_norm": False}, {"pool": "cls"}, embed_dim=16, queries=3, pool_heads=2, pooling="cascade")
        | {"decoder": {"depth": 3, "heads": 2, "mlp_dim": 32}},
    ),
}


@functools.cache
def made(case):
    name, fields = CASES[case]
    model = models.create(name, **fields)
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(32))
    return model, nn.unbox(shapes)


@pytest.mark.first(4)
@pytest.mark.parametrize("case", CASES)
def test_decay_depth_and_head_are_as_they_were(case):
    model, shapes = made(case)
    found = model.roles(shapes)
    columns = masks.paths(shapes), masks.kernels_only(found), masks.layer_decay(found, 0.5), found
    lines = [
        f"{case} {path} {decay:g} {abs(np.log2(scale)):g} {'head' if role.new else '-'}"
        for path, decay, scale, role in zip(*map(jax.tree.leaves, columns), strict=True)
    ]
    assert lines == [line for line in GOLDEN if line.startswith(f"{case} ")]


def test_every_parameter_has_a_kind():
    kinds = {(case, role.kind) for case in CASES for role in jax.tree.leaves(made(case)[0].roles(made(case)[1]))}
    assert not {case for case, kind in kinds if kind is None}
    assert {case for case, kind in kinds if kind == "filter"} == {"m2"}
    assert {case for case, kind in kinds if kind == "scalar"} == {"clip", "siglip", "coca"}


def test_the_image_encoder_of_every_model():
    for case in CASES:
        model, shapes = made(case)
        encoder, params = model.image_encoder(shapes)
        assert isinstance(encoder, ImageModel)
        assert (encoder is model) == (params is shapes) == (case not in ("clip", "siglip", "coca"))
        assert {"patch", "encoder"} <= set(params)


def leaf(*names):
    tree = {}
    for name in names:
        node = tree
        *modules, last = name.split("/")
        for module in modules:
            node = node.setdefault(module, {})
        node[last] = jnp.zeros(())
    return tree


def by_path(tree):
    return dict(zip(jax.tree.leaves(masks.paths(tree)), jax.tree.leaves(roles(tree)), strict=True))


def test_blocks_of_all_stages_count():
    names = [f"stage_{s}/block_{i}/conv/kernel" for s, depth in enumerate((2, 11)) for i in range(depth)]
    found = by_path(leaf(*names, "patch/kernel", "norm/scale", "head/bias"))
    assert [found[name].above for name in names] == list(range(13, 0, -1))
    assert found["patch/kernel"] == Role("stem", "kernel", 14)
    assert found["norm/scale"] == Role("head", "scale") and found["head/bias"] == Role("head", "bias", new=True)


def test_stages_may_have_no_blocks_or_more_than_them():
    found = by_path(leaf(*(f"stage_{i}_{name}/kernel" for i in range(11) for name in ("down", "conv")), "patch/bias"))
    assert [found[f"stage_{i}_down/kernel"].above for i in range(11)] == list(range(11, 0, -1))
    assert found["stage_3_down/kernel"] == found["stage_3_conv/kernel"] and found["patch/bias"].above == 12
    blocks = [f"stage_{s}/block_{i}/kernel" for s in range(2) for i in range(2)]
    found = by_path(leaf(*blocks, "stage_0/norm/scale", "stage_1/down/kernel", "stage_2/down/kernel"))
    assert [found[name].above for name in blocks] == [5, 4, 3, 2]
    assert [found[f"stage_{i}/{name}"].above for i, name in ((0, "norm/scale"), (1, "down/kernel"))] == [5, 3]
    assert found["stage_2/down/kernel"] == Role("block", "kernel", 1)


def test_each_stack_has_its_own_depth():
    image, text = ([f"{side}/encoder/block_{i}/kernel" for i in range(n)] for side, n in (("image", 4), ("text", 11)))
    found = by_path(leaf(*image, *text, "image/patch/kernel", "text/token/embedding"))
    assert found["image/patch/kernel"].above == 5 and found["text/token/embedding"].above == 12
    assert found[image[-1]].above == found[text[-1]].above == 1 and found[text[0]].above == 11


def test_what_a_model_does_not_say_has_no_role():
    names = ("mystery/weight", "encoder/block_0/gamma", "encoder/block_0/kernel_up", "encoder/block_0/adapter_mlp/bias")
    found = by_path(leaf(*names))
    assert found["mystery/weight"] == Role(None, None)
    assert found["encoder/block_0/gamma"] == Role("block", None, 1)
    assert found["encoder/block_0/kernel_up"] == Role("block", "kernel", 1)
    assert found["encoder/block_0/adapter_mlp/bias"] == Role("block", "bias", 1, new=True)
