"""open_clip's own reader of big_vision's files against ours."""

import dataclasses

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from vit_jax import models
from vit_jax.convert import flax, rules, verify
from vit_jax.convert.flax import big_vision, two_tower_peer
from vit_jax.convert.flax.rules import Layout
from vit_jax.convert.flax.two_tower import Towers
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor, write_npz
from vit_jax.models import describe
from vit_jax.types import UserError

IMAGE = {"name": "vit", "num_classes": 0, "patch": 7, "width": 20, "depth": 2, "heads": 2, "mlp_dim": 33, "pool": "map"}
TEXT = {"vocab_size": 23, "length": 6, "width": 18, "depth": 2, "heads": 3, "mlp_dim": 25, "causal": False,
        "pool": "last", "end_id": 1, "pad_id": 1}  # fmt: skip
TANH = {"activation": "gelu_tanh"}
CASES = {
    "siglip": (TANH, TANH, {}, {}),
    "without prefix, first": ({"activation": "relu"}, {"pool": "first", "norm_epsilon": 1e-3}, {"prefix": ""}, {}),
    "scanned": ({"norm_epsilon": 1e-3}, TANH, {}, {"scanned": True}),
}


def written(path, image=(), text=(), towers=(), layout=(), fields=()):
    """A random model of ours, also at ``path``."""
    kinds = {"image_tower": {**IMAGE, **dict(image)}, "text_tower": {**TEXT, **dict(text)}}
    heads = {"embed_dim": 20, "image_head": "none", "text_head": "biased", "bias": -10.0}
    model = models.create("two_tower", **kinds, **heads | dict(fields))
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in describe.shapes(model, 21).items():
        scale = np.prod(shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.3
        params[name] = Tensor.of((name.endswith("scale") + scale * rng.normal(size=shape)).astype(np.float32))
    layouts = dataclasses.replace(big_vision.LAYOUT, prefix="", **dict(layout)), Layout("", (0, 1, 0), **dict(layout))
    where = Towers(**{"prefix": "params/", "image": layouts[0], "text": layouts[1], **dict(towers)})
    write_npz(path, rules.back(flax.ORIGINAL.rules(model, where), params, name="file"))
    return Stored(model, params, Preprocess(21))


@pytest.mark.parametrize("case", rest_slow(CASES, "siglip"))
def test_peer_is_ours(open_clip, tmp_path, case):
    ours = written(tmp_path / "model.npz", *CASES[case])
    images = np.random.default_rng(0).standard_normal((3, 21, 21, 3), np.float32)
    texts = verify.texts(ours, 4)
    want, got = (
        verify.outputs(ours)(images, texts),
        two_tower_peer.peer(tmp_path / "model.npz", ours.model)(images, texts),
    )
    assert want.keys() == got.keys()
    for name, x in want.items():
        assert got[name].shape == x.shape and np.ptp(x) > 0.3
        np.testing.assert_allclose(got[name], x, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("image", "text", "fields", "says"),
    [
        ({}, {}, {"image_head": "biased"}, "a head on images"),
        ({}, {"width": 20, "heads": 2}, {"text_head": "none"}, "a text tower without a head"),
        ({"pool": "cls"}, {"pool": "map"}, {"bias": None}, "no bias and images pooled by 'cls' and texts pooled by 'm"),
    ],
)
def test_what_open_clip_cannot_read_is_a_sentence(tmp_path, image, text, fields, says):
    ours = written(tmp_path / "model.npz", image, text, fields=fields)
    with pytest.raises(UserError, match=says):
        two_tower_peer.peer(tmp_path / "model.npz", ours.model)


def test_files_of_the_original_are_a_sentence(tmp_path):
    ours = written(tmp_path / "model.npz", towers={"image": Layout("", (0, 1, 0), cls_position=False)})
    with pytest.raises(UserError, match="other names of the image tower"):
        two_tower_peer.peer(tmp_path / "model.npz", ours.model)


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    ours = written(tmp_path / "model.npz")
    monkeypatch.setitem(__import__("sys").modules, "open_clip.convert", None)
    with pytest.raises(UserError, match=r"pip install '.*\[torch\]'"):
        two_tower_peer.peer(tmp_path / "model.npz", ours.model)
