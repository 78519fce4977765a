"""The settings that are read, and the models that transformers cannot express."""

import numpy as np
import pytest

from vit_jax import models
from vit_jax.convert.format import check_limits
from vit_jax.convert.hf import vit_config
from vit_jax.convert.hf.vit_rules import PATCHES, Layout
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UserError

VIT = Layout("vit", False, "")
SIZES = {"width": 32, "depth": 3, "heads": 4, "mlp_dim": 48, "patch": 8}


def tensors(**shapes):
    given = {PATCHES: (32, 3, 8, 8), **{f"encoder.layer.{i}.intermediate.dense.weight": (48, 32) for i in (0, 1, 2)}}
    given |= {PATCHES if name == PATCHES else name.replace("_", "."): shape for name, shape in shapes.items()}
    return {name: Tensor.of(np.zeros(shape, np.float32)) for name, shape in given.items() if shape is not None}


def test_sizes_come_from_shapes_and_the_rest_from_the_settings():
    settings = {"num_attention_heads": 4, "layer_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh"}
    found, notes, assumed = vit_config.fields(tensors(classifier_weight=(7, 32)), VIT, settings)
    want = {**SIZES, "num_classes": 7, "activation": "gelu_tanh", "norm_epsilon": 1e-5, "pool": "cls", "registers": 0}
    assert {key: found[key] for key in want} == want
    assert notes == [] and assumed == {} and found["layer_scale"] is None and found["pre_logits"] is None
    assert isinstance(describe.build(found), models.ViT)


def test_what_is_not_said_is_assumed_and_noted():
    found, notes, assumed = vit_config.fields(tensors(), VIT, {})
    assert (found["norm_epsilon"], found["activation"], found["heads"], found["num_classes"]) == (1e-12, "gelu", 1, 0)
    assert "1 heads are assumed" in assumed["heads"]
    assert notes == [] and assumed["norm_epsilon"] == assumed["activation"] == (
        "no config.json: gelu and layer norms with epsilon 1e-12 are assumed, transformers' defaults"
    )
    _, notes, _ = vit_config.fields(tensors(), Layout("vit", False, "", bias=False), {"num_attention_heads": 2})
    assert notes == ["queries, keys and values have no biases there and biases of 0 here"]


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        ({PATCHES: (32, 1, 8, 8)}, {}, "only square RGB patches"),
        ({PATCHES: (32, 3, 8, 4)}, {}, "only square RGB patches"),
        ({PATCHES: (32, 3)}, {}, "expected 4 axes"),
        (
            {"encoder.layer.0.intermediate.dense.weight": None},
            {},
            "the weights lack encoder.layer.0.intermediate.dense.weight",
        ),
        ({}, {"hidden_act": "mish"}, "hidden_act='mish' is no activation here; allowed: gelu"),
        ({"pooler.dense.weight": (32, 32)}, {"pooler_act": "relu"}, "pooler_act='relu'"),
    ],
)
def test_settings_of_others_are_refused(shapes, settings, message):
    with pytest.raises(UserError, match=message):
        vit_config.fields(tensors(**shapes), VIT, settings)


def test_class_names():
    assert vit_config.class_names({"0": "cat", "1": "dog"}, 2) == (("cat", "dog"), [])
    assert vit_config.class_names({1: "LABEL_1", 0: "LABEL_0"}, 2) == (("0", "1"), [])
    assert vit_config.class_names({"0": "LABEL_A"}, 1) == (("LABEL_A",), [])
    assert vit_config.class_names(None, 2) == vit_config.class_names({"0": "cat"}, 0) == ((), [])
    assert vit_config.class_names({"0": "cat"}, 2) == ((), ["config.json names 1 classes, the classifier has 2"])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit_r26_s32", {}, "a convolutional stem; use --to timm"),
        ("vit_s16", {"pool": "gap"}, "pool='gap'; use --to timm"),
        ("vit_s16", {"pre_norm": True}, r"a norm before the first block \(pre_norm\); use --to vit_jax"),
        ("vit_s16", {"pool_norm": True}, r"a norm after pooling \(pool_norm\); use --to timm"),
        ("vit_s16", {"final_norm": False}, r"an encoder without a norm after it \(final_norm\); use --to vit_jax"),
        ("vit_s16", {"patch_bias": False}, r"patches without a bias \(patch_bias\); use --to vit_jax"),
        ("vit_s16", {"pool": "map"}, "pool='map'; use --to timm"),
        ("vit_s16", {"pre_logits": 8}, "pre-logits before a head; use --to npz"),
        ("vit_s16", {"pre_logits": 8, "num_classes": 0, "registers": 1}, "pre-logits beside registers"),
        ("vit_s16", {"layer_scale": 1.0}, "a head on the cls token alone; use --to timm"),
        ("vit_s16", {"registers": 4, "num_classes": 0, "mlp_dim": 1000}, "of the width; use --to timm"),
        ("vit_s16", {"pool": "cls_gap", "mlp_dim": 1000}, "MLPs of 1000, no multiple of the width; use --to vit_jax"),
    ],
)
def test_models_that_transformers_lacks(name, fields, message):
    with pytest.raises(UserError, match=message):
        check_limits(models.create(name, **fields), vit_config.LIMITS)


def test_settings_there_and_back():
    model = models.create("vit", **SIZES, num_classes=0, pre_logits=24, norm_epsilon=1e-5, activation="quick_gelu")
    settings = vit_config.content(model, VIT, 32, (), "softmax")
    assert "problem_type" not in settings and "id2label" not in settings
    found, notes, _ = vit_config.fields(tensors(pooler_dense_weight=(24, 32)), VIT, settings)
    assert describe.build(found) == model and notes == []
