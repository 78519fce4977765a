"""The journeys of the docs: every command of a page, one after the other, and what a user then has.

A page of ``docs/journeys`` has a function here, which looks at the folder that its commands were run in.
"""

from __future__ import annotations

import csv
import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import ModelCard

import vit_jax as vj
from tests import documentation
from vit_jax import sharding

pytestmark = pytest.mark.slow
"""That every command of a page is accepted, ``test_docs.py`` sees in every run of the tests."""


@pytest.fixture(scope="module", params=documentation.JOURNEYS, ids=lambda p: p.stem)
def journey(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """A page's name and the folder in which all of it was run."""
    place = tmp_path_factory.mktemp(request.param.stem)
    with documentation.working(place, request.param), pytest.MonkeyPatch.context() as patch:
        patch.setitem(documentation.SIZES, "depth", 1)
        BEFORE.get(request.param.stem, lambda _: None)(place)
        documentation.run(request.param, place)
    return request.param.stem, place


def test_a_journey_ends_where_it_says(journey):
    page, place = journey
    if not documentation.WHOLE:  # checks are of short runs
        CHECKS[page](place)


def images_before(place: pathlib.Path) -> None:
    documentation.timm_file(place)
    shutil.copy(place / "other" / "images" / "ant" / "0.png", place / "other" / "images" / "bee" / "odd.png")


def images(place: pathlib.Path) -> None:
    mine = place / "runs" / "mine"
    assert {p.stem for p in mine.glob("*.png")} >= {"inputs", "curves", "confusion", "reliability"}
    assert (mine / "evaluation" / "mistakes.png").exists()  # of held-out images there may be none
    rows = metrics(mine)
    assert len([row for row in rows if "train/loss" in row]) >= 15 and "val/accuracy" in rows[-1]
    with open(place / "predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    files = sorted((place / "my" / "images").rglob("*.png"))
    assert [(row["path"], row["label"]) for row in table] == [(str(p), p.parent.name) for p in files]
    slower, longer = metrics(place / "runs" / "slower"), metrics(place / "runs" / "longer")
    assert [row["step"] for row in slower] == [row["step"] for row in rows]  # from the beginning, at the new rate
    assert max(row.get("train/lr", 0) for row in slower) == pytest.approx(1e-4)
    first = longer[0]
    assert (first["step"], first["train/lr"]) == (17, pytest.approx(1e-4 * (1 + math.cos(math.pi * 16 / 18)) / 2))
    assert {p.name for p in place.glob("*.png")} >= {"preview.png", "attention.png"}
    own_parts(place)


def own_parts(place: pathlib.Path) -> None:
    """A run with an own loss and metric is what all commands take."""
    run = place / "runs" / "focal"
    raw = json.loads((run / "config.json").read_text())
    assert raw["objective"] == {"name": "Focal", "gamma": 1.0} and raw["imports"][0].startswith(f"{place}/own.py#")
    found = json.loads((place / "focal.json").read_text())
    assert 1 / 3 < found["val/confidence"] <= 1 and "val/accuracy" in found
    (row,) = json.loads((place / "focal-rows.json").read_text())
    again = vj.predict(vj.load(place / "focal-timm"), place / "a.jpg")[0]["predictions"]
    assert [p["class"] for p in again] == [p["class"] for p in row["predictions"]]
    np.testing.assert_allclose(again[0]["probability"], row["predictions"][0]["probability"], rtol=1e-4)
    assert (place / "focal-program" / "model.stablehlo").exists()


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def devices(place: pathlib.Path) -> None:
    """Killed on eight devices and gone on with four: the curve of one device."""
    eight, one = metrics(place / "runs" / "eight"), metrics(place / "runs" / "one")
    assert [row["step"] for row in eight] == [row["step"] for row in one]
    assert {row["step"] for row in eight if "train/loss" in row} == set(range(1, 17))
    curves = [[row.get("train/loss", row.get("val/loss")) for row in rows] for rows in (eight, one)]
    np.testing.assert_allclose(*curves, atol=1e-5, rtol=0)
    assert np.ptp(curves[0]) > 1e-3
    mesh = {run: json.loads((place / "runs" / run / "config.json").read_text())["mesh"] for run in ("eight", "one")}
    assert {k: mesh["eight"][k] for k in sharding.AXES} == {"replica": 1, "fsdp": 4, "tensor": 1} and mesh["one"][
        "fsdp"
    ] == 1
    assert not (place / "runs" / "plan").exists()


def monarch(place: pathlib.Path) -> None:
    runs, images = place / "runs", [place / "a.jpg", place / "b.png"]
    notes = vj.convert(runs / "digits", place / "again", to="vit_jax", linear=["mlp_linear=monarch(4)"]).notes
    assert any("lose most of their norm" in note for note in notes)
    cut, tuned, sparse, packed, timm, again = (
        [{p["class"]: p["probability"] for p in row["predictions"]} for row in vj.predict(place / name, images, top=10)]
        for name in ("runs/cut", "runs/monarch", "runs/sparse", "runs/packed", "monarch-timm", "again")
    )
    assert tuned != cut and cut == again
    for one, other in ((packed, sparse), (timm, tuned)):
        assert one == [pytest.approx(row, abs=1e-6) for row in other]
    sizes = {name: sum(x.size for x in jax.tree.leaves(vj.load(runs / name).params)) for name in ("digits", "monarch")}
    assert sizes["monarch"] < sizes["digits"]
    for folder in ("monarch-program", "packed-program"):
        assert (place / folder / "model.stablehlo").stat().st_size > 10_000
    assert (place / "crossover.png").exists()


def ship(place: pathlib.Path) -> None:
    mine = vj.best_checkpoint(place / "runs" / "mine")
    files = ["a.jpg", "b.png"]
    ours = vj.predict(vj.load(mine), [place / f for f in files])
    for folder in ("mine-timm", "mine-hf"):
        found = vj.load(place / folder)
        assert found.class_names == ("ant", "bee", "cat")
        rows = vj.predict(found, [place / f for f in files])
        assert [r["predictions"][0]["class"] for r in rows] == [r["predictions"][0]["class"] for r in ours]
    texts = ["an ant", "a bee"]
    clip = vj.load(place / "runs" / "clip")
    for folder in ("clip-open", "clip-hf"):
        found = vj.load(place / folder)
        jax.tree.map(np.testing.assert_array_equal, found.params, clip.params)
        np.testing.assert_array_equal(found.encoder(texts), clip.encoder(texts))
    for folder in ("mine-program", "mine-onnx", "mine-int8"):
        about = json.loads((place / folder / "model.json").read_text())
        assert about["class_names"] == ["ant", "bee", "cat"]
    sizes = [(place / folder / "model.onnx").stat().st_size for folder in ("mine-int8", "mine-onnx")]
    assert sizes[0] < 0.7 * sizes[1]
    canvases = np.stack([vj.load(mine).preprocess.read(place / f) for f in files])
    found = session(place / "mine-onnx" / "model.onnx").run(None, {"images": canvases})[0]
    np.testing.assert_allclose(found.max(axis=1), [r["predictions"][0]["probability"] for r in ours], atol=1e-5)
    tokens = clip.encoder(texts)
    embedded = session(place / "clip-onnx" / "text.onnx").run(None, {"tokens": tokens})[0]
    np.testing.assert_allclose(embedded, vj.embed(clip, texts=texts), atol=0.02)  # float32; bfloat16
    names = ["image.onnx", "model.json", "text.onnx", "tokenizer.json"]
    assert sorted(p.name for p in (place / "clip-onnx").iterdir()) == names
    assert (place / "clip-program" / "text.stablehlo").exists()
    card = ModelCard((place / "card" / "README.md").read_text())
    assert (card.data.library_name, card.data.license, card.data.model_name) == ("timm", "mit", "mine")
    results = {r.metric_type: r.metric_value for r in card.data.eval_results}
    best = json.loads((mine / "metrics" / "metrics").read_text())
    assert results["accuracy"] == pytest.approx(best["val/accuracy"], abs=1e-6)
    assert str(place) not in card.content


def session(path: pathlib.Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path)


def open_clip_folder(place: pathlib.Path) -> None:
    """``clip``, as open_clip writes a model for the hub, small as the pages' runs."""
    fields = {k: v for k, v in documentation.SIZES.items() if k != "token_dim"}
    tower = {"image_tower": {**fields, "patch": 4}, "text_tower": fields, "embed_dim": fields["width"]}
    vj.convert(vj.create("clip_vit_b32", size=16, **tower), place / "clip", to="open_clip")


def captions(place: pathlib.Path) -> None:
    pairs = place / "runs" / "pairs"
    raw = json.loads((pairs / "config.json").read_text())
    assert (raw["model"]["image_tower"]["patch"], raw["augment"]["size"]) == (4, 16)
    assert raw["data"]["text"]["tokenizer"] == "clip" and raw["data"]["text"]["length"] == 77
    assert "val/mean_r1" in metrics(pairs)[-1]
    before, after = (json.loads((p / "results.json").read_text()) for p in (place / "before", pairs / "evaluation"))
    assert {before["metrics"][f"{e}/examples"] for e in ("zero_shot", "linear_probe", "knn")} == {30}  # all of them
    assert [row["class"] for row in after["zero_shot"]["per_class"]] == ["ant", "bee", "cat"]
    assert after["metrics"]["zero_shot/examples"] == 30
    assert json.loads((place / "before.json").read_text())["val/captions"] == 30
    with open(place / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and {row["text_1"] for row in rows} <= {"an ant", "a bee", "a cat"}
    vectors = pyarrow.parquet.read_table(place / "pairs.parquet")
    assert vectors["text"].to_pylist() == [None] * 30 + [
        f"a {name}" for name in ("ant", "bee", "cat") for _ in range(10)
    ]
    model = vj.load(vj.best_checkpoint(pairs))
    own = vj.embed(model, f"csv:{place}/my/pairs.csv")
    np.testing.assert_allclose(np.array(vectors["embedding"].to_pylist()), own, atol=1e-5)
    assert json.loads((place / "runs/mixed/config.json").read_text())["data"]["text"]["templates"] == "photo"


BEFORE: dict[str, Callable[[pathlib.Path], None]] = {"images": images_before, "captions": open_clip_folder}
"""Page -> what its reader has besides."""

CHECKS: dict[str, Callable[[pathlib.Path], None]] = {
    "captions": captions,
    "devices": devices,
    "images": images,
    "monarch": monarch,
    "ship": ship,
}
"""Page -> what has to be there afterwards."""


def test_every_journey_is_checked():
    assert {page.stem for page in documentation.JOURNEYS} == set(CHECKS)
