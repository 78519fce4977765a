"""transformers' own model from any file, with its settings or with ours."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from vit_jax import models
from vit_jax.convert import hf, pretrained, rules
from vit_jax.convert.hf import vit, vit_peer
from vit_jax.convert.preprocess import Preprocess
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import describe
from vit_jax.types import UserError

CASES = {
    "head": {"num_classes": 5, "norm_epsilon": 1e-3},
    "bare": {"num_classes": 0},
    "pooler": {"num_classes": 0, "pre_logits": 24},
    "dinov2": {"num_classes": 0, "layer_scale": 1.0},
    "registers": {"num_classes": 5, "layer_scale": 1.0, "registers": 3, "pool": "cls_gap"},
}


def written(tmp_path, fields, leave=()):
    """Our model with random weights and the file that it becomes, its settings beside it."""
    model = models.create("vit", width=32, depth=2, heads=4, mlp_dim=64, patch=8, **fields)
    rng = np.random.default_rng(0)
    shapes = describe.shapes(model, 16)
    params = {path: Tensor.of(0.2 * rng.standard_normal(shape, np.float32)) for path, shape in shapes.items()}
    found = pretrained.Stored(model, params, Preprocess(16))
    writing = vit.write(found)
    tensors = rules.back(vit.rules(model, writing.layout), params, name="hf") | dict(writing.extra)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {name: leaf for name, leaf in tensors.items() if name not in leave}, {"format": "pt"})
    for name, content in writing.about.items():
        (tmp_path / name).write_text(json.dumps(content))
    return found, path


def gap(found, run):
    images = np.random.default_rng(1).standard_normal((2, 16, 16, 3), np.float32)
    want = np.asarray(found.model.apply({"params": found.tree(jnp.asarray)}, jnp.asarray(images)))
    got = run(images)
    assert got.shape == want.shape and got.dtype == np.float32
    return np.abs(got - want).max()


@pytest.mark.parametrize("case", rest_slow(CASES, "head", "registers"))
def test_peer_is_ours(transformers, tmp_path, case):
    found, path = written(tmp_path, CASES[case])
    assert gap(found, hf.FORMAT.peer(path, found.model)) <= 2e-5


@pytest.mark.parametrize("case", rest_slow(CASES, "pooler", "registers"))
def test_without_settings_those_of_our_model_hold(transformers, tmp_path, case):
    found, path = written(tmp_path, CASES[case])
    (tmp_path / "config.json").unlink()
    assert gap(found, vit_peer.peer(path, found.model)) <= 2e-5


def test_settings_beside_the_weights_win(transformers, tmp_path):
    """The peer is what transformers makes of the folder, not what we think it is."""
    found, path = written(tmp_path, CASES["head"])
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 1.0}))
    assert gap(found, vit_peer.peer(path, found.model)) > 0.01
    own = {**settings, "hidden_dropout_prob": 0.5}  # of training alone
    (tmp_path / "model.json").write_text(json.dumps({"config.json": own}))
    assert gap(found, vit_peer.peer(path, found.model)) <= 2e-5


def test_weights_that_do_not_fit_are_refused(transformers, tmp_path):
    lost = "vit.encoder.layer.1.attention.output.dense.weight"
    found, path = written(tmp_path, CASES["head"], leave=[lost])
    with pytest.raises(UserError, match=r"finds no vit\.layers\.1\.attention\.o_proj\.weight"):
        vit_peer.build(path, found.model)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "hidden_size": 64}))
    with pytest.raises(UserError, match="transformers refuses the weights at"):
        vit_peer.build(path, found.model)


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    found, path = written(tmp_path, CASES["head"])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install '.*\[torch\]'"):
        vit_peer.build(path, found.model)
