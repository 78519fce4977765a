"""Early stopping: counting, and a run that ends, says so, and is the same after a death on the way."""

import dataclasses
import json
import math
from typing import Any, ClassVar

import pytest

from tests import runs
from vit_jax import metrics
from vit_jax.evals import Evaluator, Report
from vit_jax.train import loop
from vit_jax.train.patience import Patience


@pytest.mark.parametrize(
    ("metric", "values", "since"),
    [
        ("val/accuracy", [0.1, 0.3, 0.2, 0.3], 2),  # as good is not better
        ("val/loss", [3.0, 2.0, 2.5, 1.0], 0),
        ("val/accuracy", [math.nan, 0.0, math.nan], 1),
        ("val/accuracy", [math.nan, math.nan], 2),
    ],
)
def test_evaluations_since_the_best_are_counted(metric, values, since):
    patience = Patience(metric, 2)
    for step, value in enumerate(values, 1):
        patience.see(step, {metric: value, "other": 1.0})
    assert patience.since == since and patience.over == (since >= 2)
    kept = json.loads(json.dumps(patience.meta(), allow_nan=False))  # as a checkpoint has it
    assert Patience.resumed(metric, 2, {"patience": kept}) == patience
    assert not Patience.resumed(metric, None, {"patience": kept}).over
    assert Patience.resumed("val/top5", 2, {"patience": kept}) == Patience("val/top5", 2) == Patience("val/top5", 2)
    assert Patience.resumed(metric, 2, {}) == Patience(metric, 2)


def test_what_is_said():
    assert str(Patience("val/loss", 3, 0.25, 40, 3)) == (
        "val/loss was best with 0.25 at step 40, and not better in 3 evaluations (patience=3)"
    )
    assert "was never finite" in str(Patience("val/loss", 1, since=1))


@dataclasses.dataclass(frozen=True)
class Scripted(Evaluator):
    """The next of some values."""

    metrics: ClassVar[tuple[str, ...]] = ("score",)
    values: ClassVar[list[float]] = []

    def __call__(self, context: Any) -> Report:
        return Report({"score": self.values.pop(0)})


class Death(Exception):
    pass


def dies(event):
    if event.step == 4:
        raise Death


@pytest.fixture(autouse=True)
def _one_device():
    with runs.alone():
        yield


def test_a_run_stops_early_also_if_it_dies_on_the_way(tiny, workdir, capsys):
    raw = tiny(evaluators=(Scripted(),), best="val/score", patience=2, eval_every=1, keep=1)
    Scripted.values[:] = [0.1, 0.5, 0.4]
    with pytest.raises(Death):
        loop.run(raw, workdir, [dies])
    Scripted.values[:] = [0.3]  # the second in a row that is no better
    result = loop.run(raw, workdir)
    said = capsys.readouterr().out
    reason = "val/score was best with 0.5 at step 2, and not better in 2 evaluations (patience=2)"
    assert f"stopped early at step 4/10 (epoch 1.0/2.5): {reason}\n" in said
    assert int(result.state.step) == 4 and result.report.metrics["score"] == 0.3  # of the last step, as ever
    found = json.loads((workdir / "results.json").read_text())
    assert found["step"] == 4 and found["best"] == {"step": 2, "val/score": 0.5}
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4"}  # the best is kept
    assert [row["step"] for row in metrics.read(workdir) if "val/score" in row] == [1, 2, 3, 4]

    Scripted.values[:] = [0.3]
    again = loop.run(raw, workdir)  # it stays ended, and is evaluated
    assert int(again.state.step) == 4 and f"stopped early at step 4/10 (epoch 1.0/2.5): {reason}" in (
        capsys.readouterr().out
    )
    Scripted.values[:] = [0.6, 0.5, 0.5, 0.5]
    more = loop.run({**raw, "patience": 3}, workdir)  # more patience goes on
    assert int(more.state.step) == 8 and "best with 0.6 at step 5" in capsys.readouterr().out
