"""timm's config.json, against timm's own reading of it."""

import json
from typing import Any

import numpy as np
import pytest

from vit_jax import models
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm.config import preprocess, ratio, read_config
from vit_jax.convert.timm.mixer import MIXERS
from vit_jax.convert.timm.vit import PLAIN, STEMS
from vit_jax.io.tensors import Tensor
from vit_jax.types import UserError


def named(name: str, size: int = 32, output_activation: str = "softmax", **fields: Any) -> Stored:
    """A model without weights, but for a position of its class token."""
    position = Tensor.of(np.ones((1, 17, 4), np.float32))
    model = models.create(name, **fields)
    return Stored(model, {"position/embedding": position}, Preprocess(size), output_activation=output_activation)


def written(*args: Any, **fields: Any) -> dict[str, Any]:
    return FORMAT.write(named(*args, **fields)).about["config.json"]


def test_names_are_timms(timm):
    names = [*PLAIN, *STEMS.values(), *MIXERS.values()]
    assert [name for name in names if not timm.is_model(name)] == []
    assert written("vit_ti16")["model_args"]["img_size"] == 32
    assert written("vit_ti16")["architecture"] == "vit_tiny_patch16_224"
    assert written("vit_G14", layer_scale=0.1)["architecture"] == "vit_gigantic_patch14_224"
    assert written("vit_r50_l32", stem_numerics="timm")["architecture"] == "vit_large_r50_s32_224"
    assert written("vit_h16")["architecture"] == "vit_base_patch16_224"  # timm has no name for it
    assert written("mixer_l32")["architecture"] == "mixer_l32_224"


def test_ratio():
    for hidden in range(1, 700):
        for width in (1, 3, 192, 1408, 1664):
            assert int(width * json.loads(json.dumps(ratio(hidden, width)))) == hidden
    assert ratio(6144, 1536) == 4


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [
        (named("vit", pool="cls_gap"), ["pool='cls_gap'", "map"]),
        (named("vit", pre_logits=8), ["pre_logits=8"]),
        (named("vit", stem=(1, 1)), ["stem=(1, 1)", "(2, 2, 2, 2)"]),
        (named("vit", norm_epsilon=1e-3), ["norm_epsilon=0.001", "1e-05"]),
        (named("vit_r26_s32", norm_epsilon=1e-5), ["norm_epsilon=1e-05"]),
        (named("mixer_b16", norm_epsilon=1e-5), ["norm_epsilon=1e-05"]),
        (named("mixer_b16", activation="relu"), ["16/768/12 with relu"]),
        (named("mixer", patch=8), ["8/512/8", "32/1024/24", "another format"]),
    ],
)
def test_what_timm_cannot_express(pretrained, words):
    with pytest.raises(UserError) as e:
        check(pretrained.model, FORMAT, ())
    assert [word for word in words if word not in str(e.value)] == []


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [
        (named("vit_r_ti16"), "other epsilons"),
        (named("vit", norm_epsilon=1e-12), "1e-12"),
        (named("vit", output_activation="sigmoid"), "sigmoid"),
        (named("vit", positions="sincos2d"), "count as learned"),
        (Stored(named("vit").model, named("vit").params, Preprocess(224, 0.875, canvas=300)), "300 pixels"),
    ],
)
def test_what_is_noted_in_writing(pretrained, words):
    (note,) = FORMAT.write(pretrained).notes
    assert words in note


HUB = {
    "architecture": "vit_base_patch16_224",
    "num_classes": 2,
    "num_features": 768,
    "global_pool": "token",
    "pretrained_cfg": {
        "tag": "augreg", "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "num_classes": 2, "pool_size": None, "first_conv": "patch_embed.proj",
    },
}  # fmt: skip


def test_a_config_of_the_hub(timm):
    config = read_config({"config.json": HUB})
    assert preprocess(config, 224, 0.7) == (Preprocess(224, 0.9, "bicubic"), [])
    assert (config.activation, config.epsilon, config.class_names) == ("gelu", 1e-6, ())
    assert config.args == {"global_pool": "token"}


def test_a_config_of_one_level():
    """As timm wrote them before 2023."""
    flat = {"architecture": "vit_base_patch16_224", "labels": ["a", "b"], **HUB["pretrained_cfg"], "crop_pct": 0.8}
    config = read_config({"config.json": flat})
    assert preprocess(config, 224, 0.7) == (Preprocess(224, 0.8, "bicubic"), [])
    assert config.class_names == ("a", "b")


def test_names_of_classes():
    for labels in (["a", "b", "c"], {"0": "a", "1": "b", "2": "c"}):
        for told in (HUB | {"label_names": labels}, HUB | {"pretrained_cfg": {"label_names": labels}}):
            assert read_config({"config.json": told}).class_names == ("a", "b", "c")
    numbered = {str(i): f"class {i}" for i in range(12)}
    assert read_config({"config.json": HUB | {"label_names": numbered}}).class_names == tuple(numbered.values())


def test_without_a_config_of_timms():
    for about in ({}, {"config.json": {"model_type": "vit"}}):
        found, (note,) = preprocess(read_config(about), 64, 0.9)
        assert found == Preprocess(64, 0.9, "bicubic") and "crop 0.9" in note and "assumed" in note


def test_what_a_config_leaves_out_is_timms_default(timm):
    told = timm.data.resolve_data_config(pretrained_cfg={"architecture": "vit_base_patch16_224"})
    found, notes = preprocess(read_config({"config.json": {"architecture": "vit_base_patch16_224"}}), 224, 0.7)
    assert (found.mean, found.std) == (told["mean"], told["std"]) and notes == []
    assert (found.crop, found.interpolation) == (told["crop_pct"], told["interpolation"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"interpolation": "random"}, "'random'"),
        ({"crop_mode": "fold"}, "'fold'"),
        ({"input_size": [3, 384, 384]}, "[384, 384] pixels"),
    ],
)
def test_what_is_noted_of_images(images, words):
    _, (note,) = preprocess(read_config({"config.json": HUB | {"pretrained_cfg": images}}), 224, 0.7)
    assert words in note


@pytest.mark.parametrize(
    "images", [{"mean": [0.5, 0.5]}, {"std": "imagenet"}, {"mean": [1, 2, "3"]}, {"crop_pct": 1.5}, {"crop_pct": "all"}]
)
def test_images_that_make_no_sense(images):
    (key,) = images
    with pytest.raises(UserError, match=f"{key}="):
        preprocess(read_config({"config.json": HUB | {"pretrained_cfg": images}}), 224, 0.7)


def test_norms_and_activations_by_name():
    clip = {"architecture": "vit_base_patch16_clip_quickgelu_224"}
    assert read_config({"config.json": clip}).epsilon == 1e-5
    assert read_config({"config.json": clip}).activation == "quick_gelu"
    named = read_config({"config.json": clip | {"model_args": {"norm_layer": "layer_norm", "act_layer": "GELU"}}})
    assert (named.epsilon, named.activation) == (1e-6, "gelu")
    assert read_config({"config.json": clip | {"model_args": {"norm_layer": None}}}).epsilon == 1e-6  # timm's default
