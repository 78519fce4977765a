"""Pictures of what a model sees: the images that evaluation and the first step take, and what they are called."""

import contextlib
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import api
from vit_jax.config import parse
from vit_jax.data.sources.base import Absent, Info
from vit_jax.report import plots
from vit_jax.train import inputs, rng
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError

MIXED = {"size": 8, "train": ["flip", "mixup(alpha=1.0)"], "norm": "imagenet"}


@pytest.fixture
def sheet(monkeypatch):
    """The sections of the contact sheet that was drawn last."""
    drawn = {}
    monkeypatch.setattr(plots, "contact_sheet", lambda sections, path: drawn.update(sections))
    return drawn


def test_the_first_step_sees_what_is_drawn(tiny, one_device, tmp_path, sheet):
    setup = one_device(tiny(augment=MIXED, batch_size=32, seed=3))
    inputs.draw(setup, 4, tmp_path / "inputs.png")
    ((title, (images, called)),) = sheet.items()
    assert title == "as in training, step 5, 8 px" and len(called) == inputs.SHOWN < 32
    augment = setup.config.augment
    with contextlib.closing(setup.train_batches(4)) as batches:
        batch = jax.jit(augment.train_fn(4))(rng.stream(3, "augment", 4), next(batches))
    whole = np.asarray(batch["image"]) * augment.norm.std + augment.norm.mean
    np.testing.assert_allclose(images, whole[: inputs.SHOWN], atol=1e-6)
    names = setup.train.info.class_names
    shares = np.asarray(batch["label"])[0]
    assert called[0].split(", ")[0].startswith(names[shares.argmax()])
    assert f"{shares.max():.0%}" in called[0] or shares.max() > 0.995


def test_evaluation_sees_what_is_drawn(tiny):
    raw = tiny(data={"canvas": 16}, augment={"crop": 0.5, "norm": "imagenet", "train": ["inception_crop"]})
    source, sections, notes = inputs.preview("fake:40x16x3", raw)
    assert len(source) == 40 and notes == list(source.info.notes)
    assert list(sections) == ["as in evaluation, 8 px", "as in training, step 1, 8 px"]
    c = parse(TrainConfig, raw)
    rows = [i for i in range(40) for name in [source[i]["label"]] if name == 0][:1]
    batch, _ = inputs.read(source, c.data, np.array(rows), "eval")
    images, called = inputs.framed(c, source.info, batch)["as in evaluation, 8 px"]
    expected = np.asarray(jax.jit(c.augment.eval_fn())(batch)["image"]) * c.augment.norm.std + c.augment.norm.mean
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert called == [source.info.class_names[0]]


def test_every_view_is_a_section(tiny, monkeypatch):
    c = parse(TrainConfig, tiny())
    monkeypatch.setattr(type(c.objective), "views", 2)
    _, sections, _ = inputs.preview("fake:40x8x3", tiny())
    (_, _), (first, (a, _)), (second, (b, _)) = sections.items()
    assert (first, second) == tuple(f"as in training, step 1, 8 px, view {i}" for i in (1, 2))
    assert a.shape == b.shape == (24, 8, 8, 3) and not np.array_equal(a, b)


def test_captions_are_shown_as_far_as_their_tokens_go(tiny):
    text = {"tokenizer": "bytes", "length": 8}
    raw = tiny(data={"text": text, "canvas": 16}, augment={"size": 16, "train": []})
    _, sections, _ = inputs.preview("digits_pairs", raw)
    called = [words for _, texts in sections.values() for words in texts]
    assert all(words.startswith("a ") and len(words) == 6 for words in called)  # start and end are tokens too


def test_without_a_configuration_captions_are_as_they_are_written():
    _, sections, _ = inputs.preview("digits_pairs")
    ((title, (images, called)),) = sections.items()
    assert title == "as in evaluation, 256 px" and images.shape == (24, 256, 256, 3)
    assert all(words.startswith("a ") for words in called) and max(map(len, called)) > 20


def test_classes_are_counted_without_reading_where_that_is_possible(tmp_path):
    class Unread(Absent):
        labels = np.array([0, 2, 2])

    assert inputs.counts(Unread(Info(("a", "b", "c"), 3))) == ({"a": 1, "b": 0, "c": 2}, 3)
    assert inputs.counts(Absent(Info((), 7))) == ({}, 7)
    source, _, _ = inputs.preview("fake:41x8x4")  # which tells no labels
    assert inputs.counts(source) == (dict(zip(source.info.class_names, (11, 10, 10, 10), strict=True)), 41)


def test_what_cannot_be_read_is_left_out_and_said(tmp_path):
    import PIL.Image

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=r"^none of 1 examples can be read; for one, the image .*broken\.png"):
        inputs.preview(f"folder:{tmp_path}")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a" / "whole.png")
    _, sections, notes = inputs.preview(f"folder:{tmp_path}")
    assert [texts for _, texts in sections.values()] == [["a"]] and "broken.png" in notes[-1]


@pytest.mark.slow
def test_images_in_their_own_shape_from_training_to_prediction(tiny, alone, tmp_path, rng):
    """Folders of panoramas and towers: trained, drawn, evaluated, and predicted as evaluated; micro-batches too."""
    for name, shapes in {"tower": ((40, 8), (64, 12)), "panorama": ((8, 30), (16, 50))}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (*shapes[i % 2], 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    frame = {"mode": "patches", "patch": 4, "edge": 12}
    raw = tiny(
        model={"position_grid": 4, "pool": "map"},
        data={"path": f"folder:{tmp_path / 'data'}", "canvas": 24, "frame": frame, "holdout": 8},
        augment={"size": 12, "patch": 4, "train": ["resize", "flip"]},
        batch_size=8, accumulate=2, duration=60, eval_every=60, checkpoint_every=60, optim={"lr": 0.01},
    )  # fmt: skip
    with alone():
        result = api.train(raw, tmp_path / "run")
        assert result.report.metrics["examples"] == 8
        (images, called), *_ = inputs.preview(f"folder:{tmp_path / 'data'}", raw)[1].values()
    assert images.shape[1] == images.shape[2] and len(called) == len(images)
    again = api.load(tmp_path / "run")
    assert again.preprocess.frame.mode == "patches" and again.preprocess.canvas == 24
    rows = api.predict(again, tmp_path / "data", batch_size=5)
    right = [row["predictions"][0]["class"] == pathlib.Path(row["path"]).parent.name for row in rows]
    assert api.evaluate(again, data=f"folder:{tmp_path / 'data'}").metrics["accuracy"] == pytest.approx(np.mean(right))
    together = api.embed(again, [row["path"] for row in rows[::7]])
    alone_ = np.concatenate([api.embed(again, row["path"]) for row in rows[::7]])
    np.testing.assert_allclose(together, alone_, atol=1e-5)
    report = api.evaluate(again, data=f"folder:{tmp_path / 'data'}", size=16)
    assert report.metrics["examples"] == len(rows)
