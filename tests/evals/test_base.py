"""Reports as plain data."""

import json
import pathlib

import numpy as np
import pytest

from vit_jax.evals import EVALUATORS, Report, combine
from vit_jax.evals.base import finite
from vit_jax.types import UserError


def test_finite_makes_json_of_arrays_and_nan() -> None:
    got = finite(
        {"a": np.float32("nan"), "b": [np.int64(3), (np.inf, 0.5)], "c": np.array([[1, 2]]), "d": None, "e": "x"}
    )
    assert got == {"a": None, "b": [3, [None, 0.5]], "c": [[1, 2]], "d": None, "e": "x"}
    assert type(got["b"][0]) is int


def test_save(tmp_path: pathlib.Path) -> None:
    report = Report({"accuracy": 0.5, "loss": float("nan")})
    assert list(report.prefixed("val")) == ["val/accuracy", "val/loss"]
    report.save(tmp_path / "new", ("a",), step=7)
    text = (tmp_path / "new" / "results.json").read_text()
    assert json.loads(text) == {"step": 7, "metrics": {"accuracy": 0.5, "loss": None}}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["results.json"]


def test_table_holds_frozen_dataclasses() -> None:
    for evaluator in EVALUATORS.values():
        assert hash(evaluator()) == hash(evaluator())


def test_several_reports_are_one(tmp_path: pathlib.Path) -> None:
    class Drawn(Report):
        def results(self, class_names):
            return super().results(class_names) | {f"table {min(self.metrics)}": list(class_names)}

        def draw(self, folder, class_names):
            (folder / f"{min(self.metrics)}.png").write_text("picture")

    one, two = Drawn({"a": 1.0}, {"x": np.ones(2)}), Drawn({"b": 2.0}, {"y": np.zeros(1)})
    assert combine([one]) is one
    both = combine([one, two])
    assert both.prefixed("val") == {"val/a": 1.0, "val/b": 2.0} and set(both.arrays) == {"x", "y"}
    both.save(tmp_path, ("k",), step=3)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == {"step": 3, "metrics": {"a": 1.0, "b": 2.0}, "table a": ["k"], "table b": ["k"]}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "a.png", "b.png"}


@pytest.mark.parametrize("name", ["chien_\udce9t\udce9", "\ud800", "猫"])
def test_class_names_of_any_bytes_come_back(tmp_path: pathlib.Path, name: str) -> None:
    class Named(Report):
        def results(self, class_names):
            return {"classes": list(class_names)}

    Named({}).save(tmp_path, (name,))
    text = (tmp_path / "results.json").read_text(encoding="utf-8", errors="strict")
    assert json.loads(text) == {"classes": [name]}


@pytest.mark.parametrize("name", ["results.json", "picture.png"])
def test_results_that_cannot_be_written_are_a_sentence(tmp_path: pathlib.Path, name: str) -> None:
    class Drawn(Report):
        def draw(self, folder, class_names):
            (folder / "picture.png").write_text("x")

    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"cannot be written: Is a directory\."):
        Drawn({"a": 1.0}).save(tmp_path, ())
    assert not list(tmp_path.glob(".unfinished*"))
