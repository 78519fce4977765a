"""Weights on labelled images without a run: what is scored, what probes are fitted to, which classes count."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax as vj
from vit_jax import score
from vit_jax.data.loader import eval_batches
from vit_jax.evals import KNN
from vit_jax.score import FOLDS

TINY = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "pool": "gap"}


def draw(root, names, count=10):
    """Images of one colour a class, with noise."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.integers(0, 30, (8, 8, 3)) + 100 * np.eye(3)[label % 3], 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("score") / "images", ("red", "green", "blue"))


@pytest.fixture(scope="module")
def model():
    """Of random parameters, with a head for the classes 0, 1 and 2."""
    return vj.create("vit", size=8, num_classes=3, **TINY)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """The same as a file of timm's."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    vj.convert(model, path, to="timm")
    return path


def test_any_weights_on_all_images(model, weights, data, tmp_path):
    """A file of timm's gives the numbers of the model that it came from, of every image once."""
    report = vj.evaluate(weights, data=data, evaluators=("knn(k=3)", "classify"), output=tmp_path)
    assert report.checkpoint == str(weights)
    assert report.metrics["examples"] == report.metrics["knn/examples"] == 30
    own = vj.evaluate(model, data=data, evaluators=(KNN(k=3),))
    assert own.metrics["knn/accuracy"] == report.metrics["knn/accuracy"] == 1  # colours are told apart by any features
    assert own.metrics["knn/mean_class_accuracy"] == 1
    wrong = report.metrics["accuracy"] < 1
    pictures = {"confusion.png", "reliability.png", "knn_confusion.png", "mistakes.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", *pictures} and wrong


def test_accuracy_is_that_of_predictions(model, data):
    """By predict, which takes another way to every image and to its label."""
    rows = vj.predict(model, data, top=1)
    assert len(rows) == 30 and rows[0]["path"].endswith("blue/0.png") and rows[0]["label"] == "blue"
    truth = {"blue": "0", "green": "1", "red": "2"}
    right = [row["predictions"][0]["class"] == truth[row["label"]] for row in rows]
    assert vj.evaluate(model, data=data).metrics["accuracy"] == pytest.approx(np.mean(right))


def test_probes_share_features_and_show_mistakes(model, tmp_path, monkeypatch):
    """One pass over the images for both; those that were mistaken are read once more. Devices do not matter."""
    data, out = draw(tmp_path / "images", ("red", "green", "blue", "also red"), 7), tmp_path / "out"
    passes = []
    monkeypatch.setattr(score, "eval_batches", lambda s, **kw: passes.append(len(s)) or eval_batches(s, **kw))
    probes = ("linear_probe", "knn")
    report = vj.evaluate(model, data=data, evaluators=probes, output=out)
    wrong = [round(28 * (1 - report.metrics[f"{probe}/accuracy"])) for probe in probes]
    assert min(wrong) > 0 and passes == [28, *wrong]
    pictures = {f"{probe}_{what}.png" for probe in probes for what in ("confusion", "mistakes")}
    assert {p.name for p in out.iterdir()} == {"results.json", *pictures}
    per_class = json.loads((out / "results.json").read_text())["knn"]["per_class"]
    assert [row["class"] for row in per_class] == ["also red", "blue", "green", "red"]
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    assert vj.evaluate(model, data=data, evaluators=probes).metrics == pytest.approx(report.metrics, abs=1e-6)


def test_a_part_of_its_own_is_scored_and_the_other_fitted_to(model, tmp_path):
    draw(tmp_path / "train", ("red", "green"), 4)
    data = draw(tmp_path / "val", ("red", "green"), 3).removesuffix("/val")
    metrics = vj.evaluate(model, data=data, evaluators=("knn(k=1)", "linear_probe")).metrics
    assert metrics["knn/examples"] == metrics["linear_probe/examples"] == 6
    assert metrics["knn/accuracy"] == metrics["linear_probe/accuracy"] == 1


def test_positions_are_resized(model, weights, data):
    report = vj.evaluate(weights, data=data, evaluators=("knn",), size=16)
    assert report.metrics["knn/examples"] == 30
    again = vj.evaluate(model, data=data, evaluators=("knn",), size=16)
    assert again.metrics == report.metrics
    with pytest.raises(vj.UserError, match="18x18 is not divisible by the patch size 4"):
        vj.evaluate(weights, data=data, evaluators=("knn",), size=18)


def test_some_classes_of_a_model_that_names_them(model, data, tmp_path):
    """Labels are counted in the model's classes, by name."""
    named = dataclasses.replace(model, class_names=("red", "blue", "green"))
    whole = vj.evaluate(named, data=data).metrics
    rows = vj.predict(named, data, top=1)
    assert whole["accuracy"] == pytest.approx(np.mean([r["predictions"][0]["class"] == r["label"] for r in rows]))
    draw(tmp_path, ("red", "green"))
    assert vj.evaluate(named, data=f"folder:{tmp_path}").metrics["examples"] == 20


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluators": ("knm",)}, "'knm'; did you mean 'knn'"),
        ({"evaluators": ("knn", "knn(k=2)")}, "two evaluators report val/knn/accuracy; give one of them a prefix"),
        ({"evaluators": ("zero_shot",)}, "'zero_shot' needs a model of images and texts"),
        ({"data": "folder:/not/here"}, "'folder:/not/here' does not exist"),
        ({"changes": {"batch_size": 2}}, "give a place, and no changes"),
        ({"data": None, "size": 8}, "weights, evaluators, size and output take data"),
        ({"size": 0}, "size=0 is no side of an image"),
    ],
)
def test_mistakes_are_a_sentence(weights, data, changes, says):
    with pytest.raises(vj.UserError, match=re.escape(says)):
        vj.evaluate(weights, **{"data": data, **changes})


def test_other_classes_and_no_head(model, data, tmp_path):
    draw(tmp_path, ("a", "b"))
    with pytest.raises(vj.UserError, match=r"the model has the classes 0, 1, 2, the data a, b .*'linear_probe'"):
        vj.evaluate(model, data=f"folder:{tmp_path}")
    bare = vj.create("vit", size=8, num_classes=0, **TINY)
    with pytest.raises(vj.UserError, match="has no head, so 'classify' has nothing to score; take 'linear_probe'"):
        vj.evaluate(bare, data=data)


def test_unreadable_images_are_counted(model, tmp_path):
    data = draw(tmp_path, ("red", "green"))
    (tmp_path / "red/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    metrics = vj.evaluate(model, data=data, evaluators=(f"knn(folds={FOLDS})",)).metrics
    assert metrics["knn/examples"] == 19 and metrics["unreadable"] == 1
