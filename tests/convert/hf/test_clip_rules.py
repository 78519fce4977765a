"""Golden names and shapes of transformers' CLIP and SigLIP, and what is said of files that are not converted."""

import pytest

from tests.convert.golden_trees import golden, unread
from vit_jax import models
from vit_jax.convert import hf
from vit_jax.convert.hf.clip_rules import family_of, matches, rules
from vit_jax.convert.rules import back, into
from vit_jax.models import describe
from vit_jax.types import UserError

QUICK = {"activation": "quick_gelu"}
TANH = {"activation": "gelu_tanh"}
CASES = {
    "clip-vit-base-patch32": ("clip", "clip_vit_b32", QUICK, {**QUICK, "pad_id": 1}),
    "siglip-base-patch16-224": ("siglip", "siglip_vit_b16", TANH, TANH),
}


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_theirs(name):
    family, row, image, text = CASES[name]
    want = golden("hf_clip_tree", name)
    found = hf.FORMAT.read(unread(want), {"config.json": {"model_type": family}})
    model = describe.build(found.model)
    assert model == models.create(row, image_tower=image, text_tower=text)
    assert found.preprocess.size == 224
    shapes = describe.shapes(model, 224)
    ours, _ = into(rules(model, family), unread(want), shapes, source="file")
    assert {path: tensor.shape for path, tensor in ours.items()} == shapes
    theirs = back(rules(model, family), unread(shapes), name="file")
    assert {name: tensor.shape for name, tensor in theirs.items()} == want


@pytest.mark.parametrize("name", CASES)
def test_each_is_known_by_its_names(name):
    want = golden("hf_clip_tree", name)
    assert matches(want) and hf.FORMAT.matches(want)
    assert family_of(unread(want), {}) == family_of(unread(want), {"model_type": CASES[name][0]}) == CASES[name][0]


def test_what_matches():
    assert matches(["vision_model.a", "text_model.a"]) and matches(["text_model.a"])
    assert not matches(["vision_model.a"])  # which is read as an image tower
    assert not matches(["visual.conv1.weight", "model.vision_model.a", "transformer.text_model.a"]) and not matches([])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            {},
            {"model_type": "altclip"},
            "'altclip'; of its image-text models clip, metaclip_2, siglip, siglip2 are",
        ),
        ({}, {"model_type": "siglip"}, "the weights lack vision_model.head.probe"),
        ({"vision_model.": None}, {}, r"a text tower alone \(text_model\.\*\)"),
        ({"visual_projection": None}, {}, "the weights lack visual_projection.weight"),
    ],
)
def test_others_are_refused(change, settings, message):
    names = golden("hf_clip_tree", "clip-vit-base-patch32")
    for start, shape in change.items():
        names = {n: shape if n == start else s for n, s in names.items() if shape or not n.startswith(start)}
    with pytest.raises(UserError, match=message):
        family_of(unread(names), settings)
