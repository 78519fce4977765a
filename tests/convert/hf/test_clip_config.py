"""The settings of CLIP and SigLIP that are read, and the models that they cannot express."""

import pytest

from tests.convert.golden_trees import golden, unread
from vit_jax import models
from vit_jax.convert.format import check_limits
from vit_jax.convert.hf import clip_config
from vit_jax.convert.hf.clip_config import LIMITS, content, fields, nearest
from vit_jax.convert.hf.clip_rules import rules
from vit_jax.convert.rules import back
from vit_jax.models import describe
from vit_jax.types import UserError

NAMES = {"clip": "clip-vit-base-patch32", "siglip": "siglip-base-patch16-224"}
SIZES = {"image_tower": {"width": 20, "heads": 2, "depth": 1}, "text_tower": {"width": 20, "heads": 2, "depth": 1}}


def tensors(family, **changes):
    names = golden("hf_clip_tree", NAMES[family]) | {k.replace("__", "."): v for k, v in changes.items()}
    return unread({name: shape for name, shape in names.items() if shape is not None})


@pytest.mark.parametrize(
    ("text", "vocab_size", "want"),
    [
        ({}, 49408, (49407, 1)),
        ({"eos_token_id": 2, "pad_token_id": 1}, 49408, (49407, 0)),
        ({"eos_token_id": 2}, 49410, (49407, 0)),
        ({"eos_token_id": 2}, 100, (99, 0)),
        ({"eos_token_id": 7, "pad_token_id": 3}, 100, (7, 3)),
        ({"eos_token_id": 7, "pad_token_id": None}, 100, (7, 0)),
    ],
)
def test_what_ends_a_text_of_clip(text, vocab_size, want):
    theirs = tensors("clip", text_model__embeddings__token_embedding__weight=(vocab_size, 512))
    found, _ = fields(theirs, "clip", {"text_config": text, "model_type": "clip"})
    assert (found["text_tower"]["end_id"], found["text_tower"]["pad_id"]) == want
    found, _ = fields(theirs, "metaclip_2", {"text_config": text, "model_type": "metaclip_2"})
    said = text.get("eos_token_id", 49407), text.get("pad_token_id", 1) or 0
    assert (found["text_tower"]["end_id"], found["text_tower"]["pad_id"]) == said


@pytest.mark.parametrize(
    ("text", "vocab_size", "want"),
    [
        ({}, 32000, (1, 1)),
        ({"eos_token_id": 49407, "pad_token_id": 1}, 32000, (1, 1)),
        ({}, 256000, (1, 0)),
        ({"eos_token_id": 49407, "pad_token_id": 1}, 256000, (1, 0)),
        ({"eos_token_id": 5, "pad_token_id": 4}, 32000, (5, 4)),
        ({"eos_token_id": 5, "pad_token_id": None}, 32000, (5, 1)),
    ],
)
def test_what_ends_a_text_of_siglip(text, vocab_size, want):
    theirs = tensors("siglip", text_model__embeddings__token_embedding__weight=(vocab_size, 768))
    found, _ = fields(theirs, "siglip", {"text_config": text})
    assert (found["text_tower"]["end_id"], found["text_tower"]["pad_id"]) == want


@pytest.mark.parametrize("family", NAMES)
def test_settings_there_and_back(family):
    sizes = {k: {**v, "mlp_dim": 44, "norm_epsilon": 1e-3, "activation": "relu"} for k, v in SIZES.items()}
    sizes["text_tower"] |= {"vocab_size": 50, "length": 7, "end_id": 4, "pad_id": 3}
    model = models.create({"clip": "clip_vit_b32", "siglip": "siglip_vit_b16"}[family], **sizes, embed_dim=20)
    check_limits(model, LIMITS)
    assert nearest(model) == family
    assert family == "siglip" or nearest(model.clone(text_tower=model.text_tower.clone(end_id=2))) == "metaclip_2"
    shapes = describe.shapes(model, 64)
    theirs = {k: x.shape for k, x in back(rules(model, family), unread(shapes), name="file").items()}
    settings = content(model, family, 64, 2)
    assert settings["text_config"]["bos_token_id"] == 2
    found, assumed = fields(unread(theirs), family, settings)
    assert describe.build(found) == model and assumed == {}


def test_without_settings_those_of_transformers_are_assumed():
    found, assumed = fields(tensors("siglip"), "siglip", {})
    assert (found["image_tower"]["heads"], found["text_tower"]["heads"]) == (12, 12)
    rest = "gelu_pytorch_tanh and layer norms with epsilon 1e-06 are assumed, as no config.json tells"
    assert assumed["image_tower.activation"] == f"of its image tower {rest}"
    assert assumed["text_tower.heads"].startswith("of its text tower 12 heads are assumed")
    mixed = {"vision_config": {"hidden_act": "gelu"}, "text_config": None}
    found, _ = fields(tensors("clip"), "clip", mixed)
    assert (found["image_tower"]["activation"], found["text_tower"]["activation"]) == ("gelu", "quick_gelu")
    assert (found["image_tower"]["heads"], found["text_tower"]["heads"]) == (12, 8)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"vision_model__embeddings__patch_embedding__weight": (768, 3, 32, 16)}, {}, "only square RGB patches"),
        ({"vision_model__embeddings__patch_embedding__weight": (768, 1, 32, 32)}, {}, "only square RGB patches"),
        ({"text_model__embeddings__token_embedding__weight": None}, {}, "the weights lack .*token_embedding.weight"),
        ({"text_projection__weight": None}, {}, "the weights lack text_projection.weight"),
        ({}, {"vision_config": {"hidden_act": "mish"}}, "hidden_act='mish' is no activation here"),
        ({}, {"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id=\[1, 2\] is no token"),
        ({}, {"text_config": {"eos_token_id": None}}, "eos_token_id=None is no token"),
    ],
)
def test_settings_of_others_are_refused(changes, settings, message):
    with pytest.raises(UserError, match=message):
        fields(tensors("clip", **changes), "clip", settings)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "clip_vit_b32",
            {"image_head": "biased"},
            "CLIP, the nearest, has image_head='linear' instead of 'biased'; use",
        ),
        ("clip_vit_b32", {"bias": -1.0}, "bias=None instead of 'a number'"),
        ("clip_vit_b32", {"image_tower": {"pool": "gap"}}, "image_tower.pool='cls' instead of 'gap'"),
        ("clip_vit_b32", {"image_tower": {"registers": 2}}, "image_tower.registers=0 instead of 2"),
        ("clip_vit_b32", {"image_tower": {"final_norm": False}}, "image_tower.final_norm=True instead of False"),
        ("clip_vit_b32", {"text_tower": {"causal": False}}, "text_tower.causal=True instead of False"),
        ("clip_vit_b32", {"text_tower": {"layer_scale": 1.0}}, "text_tower.layer_scale=None instead of 1.0"),
        ("siglip_vit_b16", {"text_head": "linear"}, "Siglip, the nearest, has text_head='biased' instead of 'linear'"),
        ("siglip_vit_b16", {"bias": None}, "Siglip, the nearest, has bias='a number' instead of None"),
        ("siglip_vit_b16", {"text_tower": {"pool": "first"}}, "text_tower.pool='last' instead of 'first'"),
    ],
)
def test_models_that_transformers_lacks(name, fields, message):
    model = describe.build({"name": name}, f"{name}")
    for tower, more in fields.items():
        if isinstance(more, dict) and "name" in more:
            model = model.clone(**{tower: models.create(more["name"])})
        else:
            model = model.clone(**{tower: getattr(model, tower).clone(**more) if isinstance(more, dict) else more})
    with pytest.raises(UserError, match=message):
        check_limits(model, LIMITS)


def test_where_training_started_is_no_difference():
    for name in ("clip_vit_l14", "siglip_vit_so400m14"):
        model = models.create(name, temperature=3.0, lock="image")
        model = model if model.bias is None else model.clone(bias=1.5)
        check_limits(model, LIMITS)
        assert clip_config.FAMILIES[nearest(model)].title.lower() in name
