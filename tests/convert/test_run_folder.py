"""Our own format as a target: a folder that every command takes, bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from vit_jax import config, models
from vit_jax.cli import main
from vit_jax.convert import run_folder
from vit_jax.convert.pretrained import Preprocess, Stored
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.train.config import TrainConfig

MODEL = models.create(
    "vit", width=32, depth=1, heads=4, mlp_dim=48, patch=4, num_classes=3, activation="gelu_tanh", norm_epsilon=1e-5
)
PREPROCESS = Preprocess(16, 0.8, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.fixture
def pretrained(rng):
    params = {
        p: Tensor.of(rng.normal(size=s, scale=0.3).astype(np.float32)) for p, s in describe.shapes(MODEL, 16).items()
    }
    return Stored(MODEL, params, PREPROCESS, ("ant", "bee", "cat"), "sigmoid", "bicubic", "there", ("a note",))


def test_everything_comes_back(pretrained, tmp_path):
    run_folder.save(pretrained, tmp_path / "run")
    assert run_folder.matches(tmp_path / "run") and run_folder.matches(tmp_path / "run/checkpoints/0")
    assert not run_folder.matches(tmp_path) and not run_folder.matches(tmp_path / "run/config.json")
    again = run_folder.load(tmp_path / "run")
    assert again.model == MODEL and again.class_names == ("ant", "bee", "cat")
    assert again.output_activation == "sigmoid" and again.resize == "bicubic" and again.preprocess.host_canvas == 20
    assert again.preprocess == dataclasses.replace(PREPROCESS, canvas=20)
    assert again.params.keys() == pretrained.params.keys()
    for path, tensor in pretrained.params.items():
        np.testing.assert_array_equal(again.params[path].read(), tensor.read())
        assert again.params[path].shape == tensor.shape


def test_a_model_without_a_head(rng, tmp_path):
    model = MODEL.clone(num_classes=0)
    params = {p: Tensor.of(np.ones(s, np.float32)) for p, s in describe.shapes(model, 16).items()}
    run_folder.save(Stored(model, params, PREPROCESS), tmp_path / "run")
    again = run_folder.load(tmp_path / "run")
    assert again.model == model and again.class_names == ()


def test_it_is_a_training_configuration(pretrained):
    raw = run_folder.run_config(pretrained)
    typed = config.parse(TrainConfig, raw)
    assert typed.model.clone(num_classes=3) == MODEL and typed.objective.output_activation == "sigmoid"
    assert Preprocess.of(typed.augment, typed.data.canvas) == dataclasses.replace(PREPROCESS, canvas=20)


def test_commands_take_it(pretrained, tmp_path, capsys, rng):
    run_folder.save(pretrained, tmp_path / "run")
    Image.fromarray(rng.integers(0, 256, (30, 24, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", "--workdir", str(tmp_path / "run"), str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ant", "bee", "cat"))
    assert main(["evaluate", "--workdir", str(tmp_path / "run")]) == 1
    assert "--config.data.path=" in capsys.readouterr().err


TOWERS = {
    "image_tower": {"name": "vit", "num_classes": 0, "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8},
    "text_tower": {"vocab_size": 259, "length": 5, "end_id": 2, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8},
    "embed_dim": 16,
}


@pytest.mark.parametrize(
    ("name", "fields", "objective"),
    [
        ("two_tower", {}, {"name": "contrast"}),
        ("two_tower", {"bias": -10.0}, {"name": "contrast", "loss": "sigmoid"}),
        ("coca", {}, {"name": "coca"}),
    ],
)
def test_images_and_texts(name, fields, objective, rng, tmp_path):
    towers = TOWERS | {"text_tower": {**TOWERS["text_tower"], "pool": "cls"}} if name == "coca" else TOWERS
    model = models.create(name, **towers, **fields)
    shapes = describe.shapes(model, 16)
    params = {p: Tensor.of(np.asarray(rng.normal(size=s), np.float32)) for p, s in shapes.items()}
    there = Stored(model, params, PREPROCESS, resize="bicubic", encoder=TextCodec(open_tokenizer("bytes"), 5))
    run_folder.save(there, tmp_path / "run")
    raw = json.loads((tmp_path / "run/config.json").read_text())
    assert raw["objective"] == objective and raw["data"]["text"] == {"tokenizer": "bytes", "length": 5}
    again = run_folder.load(tmp_path / "run")
    assert again.model == model and again.class_names == () and again.encoder == there.encoder
    for path, tensor in params.items():
        np.testing.assert_array_equal(again.params[path].read(), tensor.read())
    # in a run's own configuration the tower has no such fields: the data say them
    unfitted = {k: v for k, v in raw["model"]["text_tower"].items() if k not in ("vocab_size", "length", "end_id")}
    run = {**raw, "model": {**raw["model"], "text_tower": unfitted}}
    run_folder.save(dataclasses.replace(there, config=run), tmp_path / "unfitted")
    assert run_folder.load(tmp_path / "unfitted").model == model
