"""Accuracy on corrupted images beside clean ones in one report, and a second evaluator on other data."""

import json

import numpy as np
import pytest

from tests.extend.corruptions.evaluator import CORRUPTIONS, Corrupted
from vit_jax.train import loop
from vit_jax.types import UserError

DIGITS = {"data": {"path": "digits", "holdout": 360}, "duration": 150, "eval_every": 150, "checkpoint_every": 150}


@pytest.mark.slow
def test_clean_and_corrupted_images_in_one_report(tiny, alone, tmp_path):
    second = "classify(5, data='fake:4000x8x10', prefix=fake)"
    raw = tiny(**DIGITS, plots=True, evaluators=[Corrupted(), second], best="val/accuracy", optim={"lr": 0.01})
    with alone():
        result = loop.run(raw, tmp_path / "run")
    found = result.report.metrics
    assert set(Corrupted.metrics) <= set(found) and {"fake/accuracy", "fake/ece"} <= set(found)
    clean, corrupted = found["accuracy"], [found[f"{name}/accuracy"] for name in CORRUPTIONS]
    assert clean > 0.5 and max(corrupted) < clean  # it learned something, and corruptions hurt
    assert found["examples"] == found["noise/examples"] == 360 and found["fake/examples"] == 360
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("confusion.png")}
    assert names == {"confusion.png", "noise/confusion.png", "dark/confusion.png", "fake/confusion.png"}
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["metrics"]["dark/accuracy"] == found["dark/accuracy"]
    assert stored["fake"]["metrics"]["accuracy"] == found["fake/accuracy"]
    np.testing.assert_allclose(sum(row["examples"] for row in stored["noise"]["reliability"]), 360)


@pytest.mark.first(3)
@pytest.mark.parametrize("prefix", ["../out", "/tmp/x", "", ".", "a/b", "a b"])
def test_a_prefix_is_a_name_and_leads_nowhere(tiny, alone, tmp_path, prefix):
    raw = tiny(evaluators=[{"name": "classify", "prefix": prefix}], best="val/accuracy")
    with alone(), pytest.raises(UserError, match="is no name; give letters"):
        loop.run(raw, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_two_of_a_kind_need_a_prefix(tiny, alone, tmp_path):
    raw = tiny(evaluators=["classify", {"name": "classify", "bins": 5}])
    with alone(), pytest.raises(UserError, match="two evaluators report val/accuracy; give one of them a prefix"):
        loop.run(raw, tmp_path / "run")
