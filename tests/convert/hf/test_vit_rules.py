"""Which files are known, and what is said of those that are not converted."""

import numpy as np
import pytest

from vit_jax import models
from vit_jax.convert.hf.vit_rules import PATCHES, Layout, layout_of, matches, rules
from vit_jax.convert.rules import into
from vit_jax.models import describe
from vit_jax.types import UserError


def names(prefix="", *more):
    return [f"{prefix}{PATCHES}", *more]


def test_what_matches():
    assert matches(names()) and matches(names("vit.")) and matches(names("beit."))
    assert not matches(["patch_embed.proj.weight", "cls_token"]) and not matches([])


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (names("", "encoder.layer.0.attention.attention.query.bias"), Layout("vit", False, "")),
        (names("vit.", "classifier.weight"), Layout("vit", True, "vit.", bias=False)),
        (names("vit.", "decoder.0.weight"), Layout("vit", False, "vit.", bias=False)),  # ViTForMaskedImageModeling
        (names("vit.", "decoder.decoder_embed.weight"), Layout("vit_mae", False, "vit.", bias=False)),
        (names("", "layers.0.attention.q_proj.bias"), Layout("vit", False, "", modern=True)),
        (
            names(
                "dinov2.", "dinov2.encoder.layer.0.layer_scale1.lambda1", "dinov2.encoder.layer.0.attention.q_proj.bias"
            ),
            Layout("dinov2", False, "dinov2.", modern=True),
        ),
        (
            names("", "embeddings.register_tokens", "encoder.layer.0.layer_scale1.lambda1"),
            Layout("dinov2_with_registers", False, "", bias=False),
        ),
    ],
)
def test_layouts(given, want):
    assert layout_of(given, {}) == want
    assert layout_of(given, {"model_type": want.family, "architectures": ["X"]}) == want


def test_the_configuration_says_what_it_is_for():
    settings = {"architectures": ["Dinov2ForImageClassification"]}
    assert layout_of(names("dinov2.", "dinov2.encoder.layer.0.layer_scale1.lambda1"), settings).headed
    assert not layout_of(names(), {"architectures": None}).headed


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (
            names("beit."),
            {},
            "'beit'; of its models vit, vit_mae, deit, dinov2, dinov2_with_registers are",
        ),
        (names("deit."), {"model_type": "deit"}, "'deit'"),
        (
            names("", "embeddings.distillation_token", "classifier.weight"),
            {},
            "the class token alone, beside",
        ),
        (names("vit."), {"model_type": "vit_msn"}, "'vit_msn'"),
        (names("vit."), {"model_type": "dinov2"}, "'dinov2'"),
    ],
)
def test_others_are_refused(given, settings, message):
    with pytest.raises(UserError, match=message):
        layout_of(given, settings)


@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_has_its_rule(bias):
    model = models.create("vit", width=8, depth=2, heads=2, mlp_dim=16, patch=4, registers=2, layer_scale=1.0)
    found = rules(model, Layout("dinov2_with_registers", True, "dinov2_with_registers.", bias=bias))
    assert sorted(path for rule in found for path in rule.ours) == sorted(describe.shapes(model, 8))
    theirs = [name for rule in found for name in rule.theirs]
    assert len(theirs) == len(set(theirs)) == 9 + 2 * (18 if bias else 15)


def test_absent_biases_are_zeros():
    model = models.create("vit", width=8, depth=1, heads=2, mlp_dim=16, patch=4)
    found = [r for r in rules(model, Layout("vit", False, "", bias=False)) if r.ours[0].endswith("qkv/bias")]
    params, _ = into(found, {}, {"encoder/block_0/attention/qkv/bias": (24,)}, source="file")
    np.testing.assert_array_equal(params["encoder/block_0/attention/qkv/bias"].read(), np.zeros(24, np.float32))
