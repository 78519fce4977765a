"""What travels with weights: preprocessing, models as plain data, guesses that are said."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.augment import Augment
from vit_jax.convert import base
from vit_jax.convert.base import Preprocess, Stored
from vit_jax.io.tensors import Tensor
from vit_jax.types import UsageError, UserError

IMAGES = [n for n in models.IMAGE_MODELS if n not in ("vit", "mixer")]
PAIRS = [n for n in models.MODELS if n not in models.IMAGE_MODELS and n not in ("two_tower", "coca")]
TINY = {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8, "num_classes": 0}
TEXTS = {"vocab_size": 11, "length": 5, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8}


@pytest.mark.parametrize("name", IMAGES)
def test_every_model_is_described_by_what_differs(name):
    model = models.create(name, num_classes=21)
    fields = base.describe(model)
    assert fields["name"] == name and set(fields) == {"name", "num_classes"}
    changed = model.clone(activation="relu", dtype="bfloat16", norm_epsilon=1e-12)
    fields = base.describe(changed)
    assert fields.pop("num_classes") == 21 and fields.pop("activation") == "relu" and fields.pop("dtype") == "bfloat16"
    assert base.build({**base.describe(changed)}) == changed


@pytest.mark.parametrize("name", PAIRS)
def test_models_of_images_and_texts(name):
    model = models.create(name)
    assert base.describe(model) == {"name": name} and base.build({"name": name}) == model
    fields = {"image_tower": {"activation": "relu"}, "text_tower": {"dropout": 0.5}}
    changed = models.create(name, **fields)
    found = base.describe(changed)
    assert found == {"name": name, **fields} and base.build(found) == changed
    assert base.classes(model) == 0 and base.classes(models.create("vit_b16", num_classes=3)) == 3


def test_pairs_of_no_published_size():
    for fields in (
        {"name": "two_tower", "image_tower": TINY, "text_tower": TEXTS, "embed_dim": 16, "bias": -2.0},
        {"name": "two_tower", "image_tower": {"name": "mixer_b16", "num_classes": 0}, "text_tower": {}},
        {"name": "coca", "image_tower": TINY, "text_tower": TEXTS | {"pool": "cls"}, "decoder": {"heads": 4}},
    ):
        model = base.build(fields)
        found = base.describe(model)
        assert found["name"] == fields["name"] and base.build(found) == model
    assert base.describe(base.build(fields))["decoder"] == {"heads": 4}


def test_what_the_user_says_of_towers_wins():
    found = {"name": "two_tower", "image_tower": TINY, "text_tower": TEXTS, "embed_dim": 16, "bias": -2.0}
    said = base.build(found, "two_tower(image_tower={'heads': 4}, text_tower={'activation': 'quick_gelu'})")
    image, text = TINY | {"heads": 4}, TEXTS | {"activation": "quick_gelu"}
    assert said == base.build({**found, "image_tower": image, "text_tower": text})
    clip = base.build(found, "clip_vit_b32(bias=-1.0)")
    assert clip == models.create("clip_vit_b32", bias=-1.0, text_tower={"vocab_size": 11, "length": 5, "depth": 1})
    mixer = base.build(found, "two_tower(image_tower={'name': 'mixer_b16', 'num_classes': 0})")
    assert mixer.image_tower == models.create("mixer_b16", num_classes=0) and mixer.bias == -2.0
    with pytest.raises(UsageError, match="--model vit_b16 is a ViT, but the weights are of a TwoTower"):
        base.build(found, "vit_b16")
    with pytest.raises(UsageError, match=r"image_tower\.hedas'; did you mean 'heads'"):
        base.build(found, "two_tower(image_tower={'hedas': 4})")


def test_shapes_of_pairs():
    model = models.create("two_tower", image_tower=TINY, text_tower=TEXTS, embed_dim=6, bias=0.0)
    shapes = base.shapes(model, 8)
    assert shapes["logit_scale"] == shapes["logit_bias"] == () and shapes["text_head/kernel"] == (16, 6)
    assert shapes["text_tower/token/embedding"] == (11, 16) and shapes["image_tower/position/embedding"] == (1, 5, 16)


def test_a_model_of_no_published_size():
    model = models.create("vit", width=48, patch=16, dropout=0.1)
    assert base.describe(model) == {"name": "vit", "width": 48, "dropout": 0.1}
    assert base.build(base.describe(model)) == model


def test_what_the_user_says_wins():
    found = {"name": "vit", "width": 768, "heads": 6, "depth": 12, "mlp_dim": 3072, "patch": 16, "num_classes": 3}
    assert base.build(found) == models.create("vit", **{k: v for k, v in found.items() if k != "name"})
    assert base.build(found, "vit_b16(activation='gelu_tanh')") == models.create(
        "vit_b16", num_classes=3, activation="gelu_tanh"
    )
    assert base.build(found, "vit(heads=8)").heads == 8 and base.build(found, "vit(heads=8)").depth == 12
    assert base.build({**found, "pool": "gap"}, "ViT-S/32") == models.create("vit_s32", num_classes=3, pool="gap")
    with pytest.raises(UsageError, match="--model mixer_b16 is a Mixer, but the weights are of a ViT"):
        base.build(found, "mixer_b16")
    with pytest.raises(UsageError, match="unknown model 'vit_b61'; did you mean 'vit_b16'"):
        base.build(found, "vit_b61")
    with pytest.raises(UsageError, match=r"'model\.hedas'; did you mean 'heads'"):
        base.build(found, "vit(hedas=2)")


@pytest.mark.parametrize("norm", ["inception", "imagenet", "clip", "norm(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))"])
def test_preprocessing_survives_as_a_configuration(norm):
    augment = config.parse(Augment, {"size": 48, "crop": 0.875, "interpolation": "bicubic", "norm": norm})
    section = Preprocess.of(augment, 60).augment()
    assert config.parse(Augment, section) == augment
    assert (section["norm"] == norm) == (not norm.startswith("norm("))


def test_the_canvas_is_what_is_cut():
    assert Preprocess(224, 0.875).host_canvas == 256 and Preprocess(224, 0.9).host_canvas == 249
    assert Preprocess(224, 0.9, canvas=300).host_canvas == 300


def test_shapes_and_trees(rng):
    model = models.create("mixer", patch=4, width=8, depth=1, token_dim=5, mlp_dim=6, num_classes=3)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    flat = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    assert base.shapes(model, 8) == {path: x.shape for path, x in flat.items()}
    tensors = {path: Tensor.of(np.asarray(x)) for path, x in flat.items()}
    tree = Stored(model, tensors, Preprocess(8)).tree(jnp.asarray)
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, tree, params)


def test_guesses():
    assert base.heads_of(192, 12, 768) == (3, None) and base.heads_of(1280, 32, 5120) == (16, None)
    heads, note = base.heads_of(256, 4, 1024)
    assert heads == 4 and "assumed" in note
    assert base.heads_of(32, 2, 64)[0] == 1
    assert base.square(196, "x") == 14
    with pytest.raises(UserError, match="pos holds 195 positions"):
        base.square(195, "pos")
    assert base.numbered(("a", "b"), 2) == ("a", "b") and base.numbered((), 2) == ("0", "1")
