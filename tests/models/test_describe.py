"""Models as plain data, and back."""

import pytest

from vit_jax import models
from vit_jax.models import describe
from vit_jax.types import UsageError

IMAGES = [n for n in models.IMAGE_MODELS if n not in models.FAMILIES]
PAIRS = [n for n in models.MODELS if n not in models.IMAGE_MODELS and n not in models.FAMILIES]
TINY = {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8, "num_classes": 0}
TEXTS = {"vocab_size": 11, "length": 5, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8}


@pytest.mark.parametrize("name", IMAGES)
def test_every_model_is_described_by_what_differs(name):
    model = models.create(name, num_classes=21)
    fields = describe.describe(model)
    assert fields["name"] == name and set(fields) == {"name", "num_classes"}
    wanted = {"activation": "relu", "dtype": "bfloat16", "norm_epsilon": 1e-12}
    changes = {key: value for key, value in wanted.items() if getattr(model, key, value) != value}
    changed = model.clone(**changes)
    assert describe.describe(changed).items() >= {"num_classes": 21, **changes}.items()
    assert describe.build({**describe.describe(changed)}) == changed


@pytest.mark.parametrize("name", PAIRS)
def test_models_of_images_and_texts(name):
    model = models.create(name)
    assert describe.describe(model) == {"name": name} and describe.build({"name": name}) == model
    fields = {"image_tower": {"activation": "relu"}, "text_tower": {"dropout": 0.5}}
    changed = models.create(name, **fields)
    found = describe.describe(changed)
    assert found == {"name": name, **fields} and describe.build(found) == changed
    assert describe.classes(model) == 0 and describe.classes(models.create("vit_b16", num_classes=3)) == 3


def test_pairs_of_no_published_size():
    for fields in (
        {"name": "two_tower", "image_tower": TINY, "text_tower": TEXTS, "embed_dim": 16, "bias": -2.0},
        {"name": "two_tower", "image_tower": {"name": "mixer_b16", "num_classes": 0}, "text_tower": {}},
        {"name": "coca", "image_tower": TINY, "text_tower": TEXTS | {"pool": "cls"}, "decoder": {"heads": 4}},
    ):
        model = describe.build(fields)
        found = describe.describe(model)
        assert found["name"] == fields["name"] and describe.build(found) == model
    assert describe.describe(describe.build(fields))["decoder"] == {"heads": 4}


def test_what_the_user_says_of_towers_wins():
    found = {"name": "two_tower", "image_tower": TINY, "text_tower": TEXTS, "embed_dim": 16, "bias": -2.0}
    said = describe.build(found, "two_tower(image_tower={'heads': 4}, text_tower={'activation': 'quick_gelu'})")
    image, text = TINY | {"heads": 4}, TEXTS | {"activation": "quick_gelu"}
    assert said == describe.build({**found, "image_tower": image, "text_tower": text})
    clip = describe.build(found, "clip_vit_b32(bias=-1.0)")
    assert clip == models.create("clip_vit_b32", bias=-1.0, text_tower={"vocab_size": 11, "length": 5, "depth": 1})
    mixer = describe.build(found, "two_tower(image_tower={'name': 'mixer_b16', 'num_classes': 0})")
    assert mixer.image_tower == models.create("mixer_b16", num_classes=0) and mixer.bias == -2.0
    with pytest.raises(UsageError, match="--model vit_b16 is a ViT, but the weights are of a TwoTower"):
        describe.build(found, "vit_b16")
    with pytest.raises(UsageError, match=r"image_tower\.hedas'; did you mean 'heads'"):
        describe.build(found, "two_tower(image_tower={'hedas': 4})")


def test_shapes_of_pairs():
    model = models.create("two_tower", image_tower=TINY, text_tower=TEXTS, embed_dim=6, bias=0.0)
    shapes = describe.shapes(model, 8)
    assert shapes["logit_scale"] == shapes["logit_bias"] == () and shapes["text_head/kernel"] == (16, 6)
    assert shapes["text_tower/token/embedding"] == (11, 16) and shapes["image_tower/position/embedding"] == (1, 5, 16)


def test_a_model_of_no_published_size():
    model = models.create("vit", width=48, patch=16, dropout=0.1)
    assert describe.describe(model) == {"name": "vit", "width": 48, "dropout": 0.1}
    assert describe.build(describe.describe(model)) == model


def test_what_the_user_says_wins():
    found = {"name": "vit", "width": 768, "heads": 6, "depth": 12, "mlp_dim": 3072, "patch": 16, "num_classes": 3}
    assert describe.build(found) == models.create("vit", **{k: v for k, v in found.items() if k != "name"})
    assert describe.build(found, "vit_b16(activation='gelu_tanh')") == models.create(
        "vit_b16", num_classes=3, activation="gelu_tanh"
    )
    assert describe.build(found, "vit(heads=8)").heads == 8 and describe.build(found, "vit(heads=8)").depth == 12
    assert describe.build({**found, "pool": "gap"}, "ViT-S/32") == models.create("vit_s32", num_classes=3, pool="gap")
    with pytest.raises(UsageError, match="--model mixer_b16 is a Mixer, but the weights are of a ViT"):
        describe.build(found, "mixer_b16")
    with pytest.raises(UsageError, match="unknown model 'vit_b61'; did you mean 'vit_b16'"):
        describe.build(found, "vit_b61")
    with pytest.raises(UsageError, match=r"'model\.hedas'; did you mean 'heads'"):
        describe.build(found, "vit(hedas=2)")
