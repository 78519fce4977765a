"""Our own format as a target: a folder that every command takes, bit for bit."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from vit_jax import checkpoint, config, models
from vit_jax.cli import main
from vit_jax.convert import run_folder
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.framing import Framing
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build
from vit_jax.types import UserError

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
    assert again.output_activation == "sigmoid" and again.resize == "bicubic" and again.preprocess.host_canvas == 16
    assert again.preprocess == PREPROCESS
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
    assert Preprocess.of(typed.augment, typed.data.canvas, typed.data.frame) == PREPROCESS


def test_evaluation_and_prediction_see_the_same_pixels(pretrained, tmp_path, rng):
    """The host of a run frames a file as the weights' project does."""
    frame = Framing("squash", rounding="transformers")
    preprocess = dataclasses.replace(PREPROCESS, frame=frame, interpolation="bilinear")
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (30, 24, 3)).astype(np.uint8)).save(tmp_path / "images" / name / "a.png")
    raw = run_folder.run_config(dataclasses.replace(pretrained, preprocess=preprocess))
    raw["data"] |= {"path": f"folder:{tmp_path / 'images'}", "val": f"folder:{tmp_path / 'images'}"}
    setup = build(config.parse(TrainConfig, {**raw, "batch_size": 8}))
    with contextlib.closing(setup._eval_batches(setup.val, None)) as batches:
        batch = next(batches)
    assert batch["image"].shape[1:] == (16, 16, 3)
    assert np.array_equal(batch["image"][0], preprocess.read(tmp_path / "images/ant/a.png"))
    ours = setup.prepare({k: v[:8] for k, v in batch.items()})["image"][0]
    np.testing.assert_allclose(ours, preprocess(tmp_path / "images/ant/a.png"), atol=1e-6)


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


@pytest.mark.first(1)
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


def deep(value, depth=300):
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.first(12)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: [], r"meta=\[\] is of type list"),
        (lambda m: None, "meta=None is of type NoneType"),
        (lambda m: {k: v for k, v in m.items() if k != "checksums"}, "meta lacks 'checksums'"),
        (lambda m: {k: v for k, v in m.items() if k != "config"}, "lacks 'config'"),
        (lambda m: {k: v for k, v in m.items() if k != "class_names"}, "lacks 'class_names'"),
        (lambda m: {**m, "checksums": 5}, r"checksums=5 is of type int, expected an object"),
        (lambda m: {**m, "checksums": {"params": {"head/bias": "x"}}}, "checksums.params.head/bias='x' is of type str"),
        (lambda m: {**m, "config": [1]}, r"config=\[1\] is of type list"),
        (lambda m: {**m, "class_names": [None, "b", "c"]}, r"class_names\[0\]=None is of type NoneType"),
        (lambda m: {**m, "class_names": ["a", "b"]}, r"holds head/bias of the shape \(3,\), .* 2 class names ask for"),
        (lambda m: {**m, "class_names": []}, r"holds head/bias of the shape \(3,\)"),
        (lambda m: {**m, "resize": "nearest"}, "resize='nearest' is not allowed"),
        (lambda m: {**m, "schema": "x"}, "schema='x' is of type str"),
        (lambda m: {**m, "provenance": 3}, "provenance=3 is of type int"),
        (lambda m: {**m, "tokenizer": "clip"}, "tokenizer='clip' is of type str"),
        (lambda m: {**m, "tokenizer": {"state": {"kind": "bytes"}, "length": 0}}, "length=0 is not allowed"),
        (
            lambda m: {**m, "tokenizer": {"state": {"kind": "bytes"}, "length": 10**9}},
            "length=1000000000 is not allowed",
        ),
        (lambda m: {**m, "tokenizer": {"state": {"kind": "bytes"}}}, "lacks 'length'"),
        (lambda m: {**m, "tokenizer": {"state": [], "length": 9}}, "tokenizer.state=.* is of type list"),
        (lambda m: {**m, "config": {**m["config"], "data": {"canvas": 10**6}}}, "data.canvas=1000000 is not allowed"),
        (lambda m: {**m, "config": {**m["config"], "data": None}}, "data=None is of type NoneType"),
        (lambda m: {**m, "config": {**m["config"], "augment": 3}}, "augment=3 is of type int"),
        (lambda m: {**m, "config": {**m["config"], "augment": {"size": -1}}}, "augment.size=-1 is not allowed"),
        (
            lambda m: {**m, "config": {**m["config"], "model": {"name": "vit", "width": 64, "heads": 4}}},
            "it is damaged, or was changed",
        ),
        (lambda m: {**m, "config": {**m["config"], "model": {"name": ["vit"]}}}, "unknown model"),
        (lambda m: {**m, "config": {**m["config"], "objective": {}}}, "objective lacks the key 'name'"),
        (lambda m: {**m, "config": deep(1)}, "lacks 'model'"),
    ],
)
def test_metadata_that_were_changed(pretrained, tmp_path, change, says):
    run_folder.save(pretrained, tmp_path / "run")
    meta = tmp_path / "run/checkpoints/0/meta/metadata"
    changed = change({k: v for k, v in json.loads(meta.read_text()).items() if k != "checksum"})
    if isinstance(changed, dict):  # by somebody who knows how they are summed
        changed["checksum"] = checkpoint.text_sum(changed)
    meta.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=says) as e:
        run_folder.load(tmp_path / "run")
    assert "\n" not in str(e.value)


def test_metadata_without_end(pretrained, tmp_path):
    run_folder.save(pretrained, tmp_path / "run")
    (tmp_path / "run/checkpoints/0/meta/metadata").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match=r"cannot be read .meta: "):
        run_folder.load(tmp_path / "run")
    with open(tmp_path / "run/checkpoints/0/meta/metadata", "r+b") as file:
        file.truncate(2**31)
    with pytest.raises(UserError, match="more than 268,435,456 bytes"):
        run_folder.load(tmp_path / "run")
