"""The rules against names and shapes written down from the projects' own code, and what is no plain renaming."""

import dataclasses
import re

import numpy as np
import pytest

from tests.convert.golden_trees import golden, unread
from vit_jax import models
from vit_jax.convert import flax
from vit_jax.convert.flax.rules import POSITIONS, Layout, rules
from vit_jax.convert.rules import back, into
from vit_jax.models import describe
from vit_jax.types import UserError

LINEN = Layout(numbers=(0, 1, 0), position=POSITIONS[1], cls_position=False)
TANH = {"activation": "gelu_tanh"}
CASES = {
    ("npz_tree", "ViT-B_16, ImageNet-21k"): ("vit_b16", 224, {"num_classes": 21843, "pre_logits": 768}),
    ("npz_tree", "ViT-B_16, fine-tuned at 384"): ("vit_b16", 384, {}),
    ("npz_tree", "R50+ViT-B_16, ImageNet-21k"): ("vit_r50_b16", 224, {"num_classes": 21843, "pre_logits": 768}),
    ("npz_tree", "R+ViT-Ti_16"): ("vit_r_ti16", 224, {}),
    ("npz_tree", "Mixer-B_16"): ("mixer_b16", 224, {}),
    ("big_vision_tree", "S/16, sin-cos positions, average"): ("vit_s16", 224, {"pool": "gap", "positions": "sincos2d"}),
    ("big_vision_tree", "S/16, class token, rep_size"): ("vit_s16", 224, {"pre_logits": 384}),
    ("big_vision_tree", "Ti/16, scanned, attention pooling"): ("vit_ti16", 256, {"pool": "map", "num_classes": 0}),
    ("big_vision_tree", "Mixer-B/16"): ("mixer_b16", 224, {}),
}


@pytest.mark.first(4)
@pytest.mark.parametrize(("file", "name"), CASES)
def test_names_and_shapes_are_the_projects(file, name):
    model, size, fields = CASES[file, name]
    want = golden(file, name)
    fmt, other = (flax.ORIGINAL, flax.BIG_VISION)[:: 1 if file == "npz_tree" else -1]
    assert fmt.matches(want.keys()) and not other.matches(want.keys())
    found = fmt.read(unread(want), {})
    module = describe.build(found.model)
    assert module == models.create(model, **TANH, **fields)
    assert found.preprocess.size == size
    shapes = describe.shapes(module, size)
    ours, _ = into(fmt.rules(module, found.layout), unread(want), shapes, source="file")
    assert {path: tensor.shape for path, tensor in ours.items()} == shapes
    theirs = back(fmt.rules(module, found.layout), unread(shapes), name="file")
    assert {name: tensor.shape for name, tensor in theirs.items()} == want


def test_new_files_have_flat_group_norms():
    stem = rules(models.create("vit_r_ti16"), Layout())
    old = rules(models.create("vit_r_ti16"), Layout(group_norm=4))
    x = np.arange(64.0)
    for rows, shape in ((stem, (64,)), (old, (1, 1, 1, 64))):
        row = next(r for r in rows if r.theirs == ("gn_root/scale",))
        assert row.transform.back(x)[0].shape == shape
        np.testing.assert_array_equal(row.transform.into(*row.transform.back(x))[0], x)


def tiny(**fields):
    return models.create("vit", width=16, depth=2, heads=2, mlp_dim=8, patch=8, num_classes=3, **fields)


def test_a_token_without_position_is_one_with_a_zero_position(rng):
    row = next(r for r in rules(tiny(), LINEN) if "cls" in r.theirs)
    assert row.theirs == ("cls", "pos_embedding") and row.ours == ("cls", "position/embedding")
    cls, grid = (rng.normal(size=(1, n, 16)).astype(np.float32) for n in (1, 4))
    cls[..., 0] = -0.0
    ours = row.transform.into(cls, grid)
    np.testing.assert_array_equal(ours[1][:, 1:], grid)
    np.testing.assert_array_equal(ours[0] + ours[1][:, :1], cls)
    for again, x in zip(row.transform.back(*ours), (cls, grid), strict=True):
        assert again.tobytes() == x.tobytes()  # a negative zero stays one
    position = rng.normal(size=(1, 5, 16)).astype(np.float32)
    folded = row.transform.back(cls, position)
    np.testing.assert_array_equal(folded[0], cls + position[:, :1])
    np.testing.assert_array_equal(folded[1], position[:, 1:])


@pytest.mark.parametrize("where", ["Transformer/encoderblock_1/", "MAPHead_0/"])
@pytest.mark.parametrize("leaf", ["query/kernel", "value/bias", "out/kernel"])
def test_another_number_of_heads_is_not_reshaped_away(where, leaf):
    """Ours are the same arrays for 2 heads of 8 and 4 heads of 4; only their shapes tell."""
    model = tiny(pool="map")
    shapes = describe.shapes(model, 16)
    there = {k: v.shape for k, v in back(rules(model, LINEN), unread(shapes), name="").items()}
    name = f"{where}MultiHeadDotProductAttention_0/{leaf}"
    there[name] = tuple({2: 4, 8: 4}.get(n, n) for n in there[name])
    with pytest.raises(UserError, match=rf"{re.escape(name)} .* does not fit .*--model"):
        into(rules(model, LINEN), unread(there), shapes, source="file")


def test_stacked_blocks_hold_layer_after_layer(rng):
    model, names = tiny(), ("query", "key", "value")
    layout = dataclasses.replace(LINEN, scanned=True)
    row = next(r for r in rules(model, layout) if any("query/kernel" in name for name in r.theirs))
    assert row.theirs == tuple(f"Transformer/encoderblock/MultiHeadDotProductAttention_0/{x}/kernel" for x in names)
    kernels = [rng.normal(size=(2, 16, 2, 8)) for _ in names]
    for i, ours in enumerate(row.transform.into(*kernels)):
        assert row.ours[i] == f"encoder/block_{i}/attention/qkv/kernel"
        for j, kernel in enumerate(kernels):
            np.testing.assert_array_equal(ours.reshape(16, 2, 3, 8)[:, :, j], kernel[i])
