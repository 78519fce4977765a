"""Reports as plain data."""

import json
import pathlib

import numpy as np

from vit_jax.evals import EVALUATORS, Report
from vit_jax.evals.base import finite


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
