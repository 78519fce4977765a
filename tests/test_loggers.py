"""TensorBoard's files, and what Weights & Biases and MLflow are told; stand-ins hear it, as neither is installed."""

import dataclasses
import logging
import math
import sys
import types
from typing import Annotated, Any

import pytest

from vit_jax import loggers
from vit_jax.config import Choice, parse
from vit_jax.loggers import LOGGERS, LoggerSpec, MLflow, TensorBoard, WandB
from vit_jax.metrics import MetricsWriter
from vit_jax.types import UserError


def resumed(folder, spec, config=None):
    """A run of six steps, which dies and goes on after the fourth."""
    for start, end in ((0, 6), (4, 8)):
        with MetricsWriter(folder, [spec]) as writer:
            writer.truncate(start)
            writer.open(config)
            for step in range(start + 1, end + 1):
                writer.write(step, {"train/loss": 1 / step, "bad": math.nan})


def test_tensorboard_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.truncate(6)
        writer.write(7, {"train/loss": 0.25, "bad": math.nan})
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    written = events.read_bytes()
    assert b"train/loss" in written and b"bad" not in written


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in: ``opened`` holds the arguments of every ``init``, ``runs`` the rows by the number of the run."""
    module: Any = types.ModuleType("wandb")
    module.opened, module.runs, module.finished = [], {}, 0

    class Run:
        def __init__(self, number):
            self.rows = module.runs.setdefault(number, {})
            self.step = max(self.rows, default=-1) + 1

        def log(self, row, step):
            assert step >= self.step, "the real one warns, and drops the row"
            self.step = step
            self.rows.setdefault(step, {}).update(row)

        def finish(self):
            module.finished += 1

    def init(*, project, entity, name, mode, id, resume, dir, config):
        assert resume == "allow"
        module.opened.append({"project": project, "name": name, "mode": mode, "dir": dir, "config": config})
        return Run(id)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_is_one_run_however_often_it_is_resumed(tmp_path, wandb):
    resumed(tmp_path / "mine", WandB(mode="offline"), {"optim": {"lr": 0.1}})
    ((number, rows),) = wandb.runs.items()
    assert rows == {step: {"train/loss": 1 / step} for step in range(1, 9)}
    assert wandb.finished == 2 and (tmp_path / "mine" / "wandb.id").read_text().strip() == number
    expected = {"project": "vit_jax", "name": "mine", "mode": "offline", "config": {"optim": {"lr": 0.1}}}
    assert wandb.opened == [expected | {"dir": str(tmp_path / "mine")}] * 2


def test_a_service_that_cannot_be_opened_is_a_sentence(tmp_path, wandb, mlflow):
    def fail(*_, **__):
        raise RuntimeError("no network\nat all")

    wandb.init = mlflow.MlflowClient = fail
    for spec, text in {
        WandB(): r"Biases cannot be opened \(no network\)",
        MLflow(): r"MLflow cannot be opened",
    }.items():
        with MetricsWriter(tmp_path, [spec]) as writer, pytest.raises(UserError, match=text):
            writer.open()


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in: ``runs`` holds name, parameters, rows and status of every run, ``down`` whether the server is."""
    module: Any = types.ModuleType("mlflow")
    module.runs, module.names, module.down = {}, {}, False
    entities: Any = types.ModuleType("mlflow.entities")

    @dataclasses.dataclass
    class Metric:
        key: str
        value: float
        timestamp: int
        step: int

    class MlflowClient:
        def __init__(self, tracking_uri=None):
            self.uri = tracking_uri

        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id=module.names[name]) if name in module.names else None

        def create_experiment(self, name):
            return module.names.setdefault(name, "7")

        def create_run(self, experiment_id, run_name):
            assert experiment_id == "7"
            module.runs["r1"] = types.SimpleNamespace(name=run_name, params={}, rows=[], status="RUNNING", uri=self.uri)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_param(self, run_id, key, value):
            module.runs[run_id].params[key] = value

        def get_run(self, run_id):
            metrics = {key: value for _, key, value in module.runs[run_id].rows}
            return types.SimpleNamespace(data=types.SimpleNamespace(metrics=metrics))

        def get_metric_history(self, run_id, key):
            return [Metric(k, value, 0, step) for step, k, value in module.runs[run_id].rows if k == key]

        def update_run(self, run_id, status):
            module.runs[run_id].status = status

        def log_batch(self, run_id, metrics):
            if module.down:
                raise ConnectionError("the server is down")
            module.runs[run_id].rows += [(m.step, m.key, m.value) for m in metrics]

        def set_terminated(self, run_id):
            module.runs[run_id].status = "FINISHED"

    module.MlflowClient, module.entities, entities.Metric = MlflowClient, entities, Metric
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return module


def test_mlflow_is_one_run_however_often_it_is_resumed(tmp_path, mlflow):
    resumed(tmp_path / "mine", MLflow(uri="file:there"), {"optim": {"lr": 0.1}, "evaluators": ["classify"]})
    ((_, run),) = mlflow.runs.items()
    assert (run.name, run.status, run.uri) == ("mine", "FINISHED", "file:there") and mlflow.names == {"vit_jax": "7"}
    assert run.params == {"optim.lr": "0.1", "evaluators": "['classify']"}
    assert run.rows == [(step, "train/loss", 1 / step) for step in range(1, 9)]  # none of them twice


def test_a_server_that_fails_ends_no_training(tmp_path, mlflow, caplog):
    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path, [MLflow()]) as writer:
        writer.write(1, {"a@b": 1.0})
        mlflow.down = True
        writer.write(2, {"a@b": 2.0})
        writer.write(3, {"a@b": 3.0})
    assert caplog.messages == ["MLflow takes no more rows (the server is down); metrics.jsonl has all of them."]
    assert mlflow.runs["r1"].rows == [(1, "a_b", 1.0)] and writer.rows == 3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            TensorBoard(),
            "logger tensorboard takes what comes with this package .*: pip install .*, or leave tensorboard out",
        ),
        (
            WandB(),
            r"logger wandb takes the extra 'wandb' .*: pip install '.*\[wandb\]', or leave wandb out",
        ),
        (MLflow(), r"pip install '.*\[mlflow\]'"),
    ],
)
def test_a_missing_package_is_said(spec, text, monkeypatch):
    monkeypatch.setitem(sys.modules, spec.module, None)
    with pytest.raises(UserError, match=text):
        spec.check()


def test_loggers_are_chosen_by_name_and_own_ones_taken(tmp_path):
    hint = tuple[Annotated[LoggerSpec, Choice(LOGGERS, LoggerSpec)], ...]
    assert parse(hint, ["tensorboard", "wandb(project='mine', mode='offline')"]) == (
        TensorBoard(),
        WandB(project="mine", mode="offline"),
    )
    listed = (TensorBoard(), WandB(mode="offline"))
    assert parse(hint, "tensorboard, wandb(mode='offline')") == parse(hint, listed) == listed
    for wrong in (["wandbb"], "tensorboard,wandbb"):
        with pytest.raises(UserError, match="did you mean 'wandb'"):
            parse(hint, wrong)

    class Own(LoggerSpec):
        rows: Any = []  # noqa: RUF012

        def open(self, run):
            assert isinstance(run, loggers.Run) and run.workdir == tmp_path
            return self

        def write(self, step, row):
            self.rows.append((step, dict(row)))

        def close(self):
            self.rows.append("closed")

    (own,) = parse(hint, [Own()])
    own.check()
    with MetricsWriter(tmp_path, [own]) as writer:
        writer.write(3, {"x": 1})
    assert own.rows == [(3, {"x": 1.0}), "closed"]
