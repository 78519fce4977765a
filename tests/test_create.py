"""``create``: new parameters are a function of the seed, published ones are fitted."""

import jax
import numpy as np
import pytest

import vit_jax as vj
from vit_jax.convert import write

TINY = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
TEXT = {"vocab_size": 50, "length": 5, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
TOWERS = {"image_tower": {"name": "vit", **TINY}, "text_tower": TEXT, "embed_dim": 16}


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def fresh():
    return vj.create("vit", size=8, num_classes=3, **TINY)


@pytest.fixture(scope="module")
def place(fresh, tmp_path_factory):
    """Weights with another activation than a ViT of ours has."""
    path = tmp_path_factory.mktemp("create") / "run"
    other = fresh.model.clone(activation="gelu_tanh")
    assert other.activation != fresh.model.activation
    write.save(vj.Pretrained(other, fresh.params, fresh.preprocess, ("ant", "bee", "cat")).stored(), path, "vit_jax")
    return path


def test_new_parameters(fresh):
    model, params, preprocess = fresh
    assert preprocess.size == 8 and fresh.class_names == ("0", "1", "2")
    assert params["position"]["embedding"].shape == (1, 5 if model.pool == "cls" else 4, 16)
    equal(vj.create("vit", size=8, num_classes=3, **TINY).params, params)
    other = vj.create("vit", size=8, num_classes=3, seed=1, **TINY).params
    assert not np.array_equal(other["patch"]["kernel"], params["patch"]["kernel"])


def test_weights_as_they_are(fresh, place):
    found = vj.create("vit", place, **TINY)
    assert found.model.activation == "gelu_tanh" and found.model.num_classes == 3
    assert found.class_names == ("ant", "bee", "cat")
    equal(found.params, fresh.params)


def test_weights_are_fitted(fresh, place):
    found = vj.create("vit", place, size=16, seed=3, num_classes=5, activation="relu", **TINY)
    assert found.model.activation == "relu" and found.model.num_classes == 5 and found.preprocess.size == 16
    assert found.class_names == tuple("01234")
    notes = "; ".join(found.notes)
    for text in ("head/kernel is new", "position/embedding is resized", "its model has activation='gelu_tanh'"):
        assert text in notes
    equal(found.params["encoder"], fresh.params["encoder"])
    images = np.zeros((2, 16, 16, 3), np.float32)
    assert found.model.apply({"params": found.params}, images).shape == (2, 5)


@pytest.mark.thorough
def test_an_image_tower_and_back(fresh, place, tmp_path):
    pair = vj.create("two_tower", place, **TOWERS)
    assert "its parameters are those of the image_tower" in "; ".join(pair.notes) and pair.encoder is None
    equal(pair.params["image_tower"]["encoder"], fresh.params["encoder"])
    write.save(pair.stored(), tmp_path / "pair", "vit_jax")
    image = vj.create("vit", tmp_path / "pair", num_classes=2, **TINY)
    assert "only its image_tower is used" in "; ".join(image.notes)
    equal(image.params["encoder"], fresh.params["encoder"])


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("vot",), {}, "unknown model 'vot'; did you mean 'vit'"),
        (("vit",), {"widht": 3}, "did you mean 'width'"),
        (("vit",), {"size": 0}, "size=0 is no side of an image"),
        (("mixer", "PLACE"), {}, "holds the weights of a ViT, and mixer is a Mixer"),
        (("vit", "PLACE"), {**TINY, "width": 32}, "does not fit the model"),
        (("vit", "nowhere/x"), {}, "does not exist"),
        (("vit_b16", "augreg_in22k"), {}, "no tag of published weights; did you mean 'vit_b16.augreg_in21k"),
    ],
)
def test_mistakes(place, arguments, options, text):
    with pytest.raises(vj.UserError, match=text):
        vj.create(*[place if a == "PLACE" else a for a in arguments], **options)
