"""Where the rows of a run go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

from vit_jax.io import atomic, extras, text
from vit_jax.types import UserError

EVENTS = "tensorboard"
"""The folder of TensorBoard's events in a workdir."""

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Takes the rows of one run, in the order of their steps; several may be of one step."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Takes the finite numbers of ``step``."""

    def close(self) -> None:
        """No row comes thereafter."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a logger is opened for.

    Attributes:
      workdir: the run's folder.
      start: the step that the run goes on from: what was logged of later ones is about to be computed again.
      config: the plain configuration.
    """

    workdir: pathlib.Path
    start: int | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class LoggerSpec:
    """Which logger, and how it is set: a row of :data:`LOGGERS`, or a value of one's own.

    Attributes:
      module: what it imports.
      extra: of this package, which installs that; ``""`` comes with the package itself.
    """

    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    def check(self) -> None:
        """Raises :class:`UserError` where its package is missing; asked before anything is computed."""
        if not self.module:
            return
        name = type(self).__name__.lower()
        with extras.needed(f"the logger {name}", self.extra, f", or leave {name} out of loggers"):
            importlib.import_module(self.module)

    def open(self, run: Run) -> Logger:
        """Begins, or goes on with what was begun for this workdir before."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TensorBoard(LoggerSpec):
    """Files of events in the workdir's ``tensorboard/``, for ``tensorboard --logdir``."""

    module: ClassVar[str] = "tensorboardX"

    def open(self, run: Run) -> Logger:
        with atomic.writing(str(run.workdir / EVENTS)):
            return _Events(run.workdir / EVENTS, None if run.start is None else run.start + 1)


@dataclasses.dataclass(frozen=True)
class WandB(LoggerSpec):
    """Weights & Biases; its files lie in the workdir's ``wandb/``.

    Attributes:
      project: of Weights & Biases.
      entity: the account or team; None is the default of whoever is logged in.
      name: of the run; None is the workdir's.
      mode: ``"offline"`` writes files alone, for ``wandb sync``; None is what ``WANDB_MODE`` says, else online.
    """

    module: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    project: str = "vit_jax"
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None

    def open(self, run: Run) -> Logger:
        import wandb

        number = _kept(run.workdir / "wandb.id", lambda: uuid.uuid4().hex[:12])
        name = self.name or run.workdir.resolve().name
        try:
            opened = wandb.init(
                project=self.project, entity=self.entity, name=name, mode=self.mode, id=number, resume="allow",
                dir=str(run.workdir), config=dict(run.config),
            )  # fmt: skip
        except Exception as e:  # of its own kinds, for want of a key or of a network
            raise UserError(
                f"Weights & Biases cannot be opened ({atomic.reason(e)}); run wandb login, or set "
                "--config.loggers=\"tensorboard, wandb(mode='offline')\"."
            ) from e
        return _WandB(opened)


@dataclasses.dataclass(frozen=True)
class MLflow(LoggerSpec):
    """MLflow's tracking.

    Attributes:
      experiment: that the run belongs to; made where there is none.
      name: of the run; None is the workdir's.
      uri: of the tracking server, or a database such as ``sqlite:///mlflow.db``; None is what ``MLFLOW_TRACKING_URI``
        says, else MLflow's default.
    """

    module: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    experiment: str = "vit_jax"
    name: str | None = None
    uri: str | None = None

    def open(self, run: Run) -> Logger:
        import mlflow

        name = self.name or run.workdir.resolve().name
        try:
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else client.create_experiment(self.experiment)

            def begin() -> str:
                made = client.create_run(number, run_name=name).info.run_id
                for key, value in _leaves(run.config).items():
                    client.log_param(made, key, str(value)[:500])
                return made

            known = _kept(run.workdir / "mlflow.id", begin)
            client.update_run(known, status="RUNNING")
            logged = {key: client.get_metric_history(known, key) for key in client.get_run(known).data.metrics}
        except Exception as e:
            raise UserError(
                f"MLflow cannot be opened ({atomic.reason(e)}); look at MLFLOW_TRACKING_URI, or set "
                "--config.loggers=\"mlflow(uri='...')\"."
            ) from e
        return _MLflow(client, known, {key: max(m.step for m in rows) for key, rows in logged.items()})


LOGGERS: dict[str, type[LoggerSpec]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class _Events:
    """A file of TensorBoard's events, written at once: tensorboardX's own writer leaves that to a thread, which would
    die of a full disk by itself.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._writer = folder, EventsWriter(str(folder / "events"))
        if purge_step is not None:  # what other files of the folder say of later steps is forgotten
            self._event(purge_step, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        with atomic.writing(str(self._folder)):
            for name, value in row.items():
                self._event(step, summary=scalar(name, value))
            self._writer.flush()

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError:
            with contextlib.suppress(OSError):
                self._writer._py_recordio_writer.close()  # which it leaves open where the rest cannot be written
            raise


class _WandB:
    """A run of Weights & Biases; what a resumed run computes again it does not take twice."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, row: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow; what a resumed run computes again it does not take twice.

    A server that fails ends no training: the rest is in ``metrics.jsonl`` alone, which is said.
    """

    def __init__(self, client: Any, run: str, last: Mapping[str, int]) -> None:
        self._client, self._run, self._last, self._lost = client, run, last, False

    def write(self, step: int, row: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-./ ]", "_", name): value for name, value in row.items()}
        new = [Metric(name, value, now, step) for name, value in named.items() if step > self._last.get(name, -1)]
        if new:
            self._try(lambda: self._client.log_batch(self._run, metrics=new))

    def close(self) -> None:
        self._try(lambda: self._client.set_terminated(self._run))

    def _try(self, call: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            call()
        except Exception as e:
            self._lost = True
            log.warning("MLflow takes no more rows (%s); metrics.jsonl has all of them.", atomic.reason(e))


def _kept(path: pathlib.Path, make: Callable[[], str]) -> str:
    """What was written to ``path`` when the run began: a resumed one goes on with it."""
    if not path.exists():
        with atomic.writing(str(path)):
            atomic.write_text(path, make() + "\n")
    return text.read(path).strip()


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """``{"optim.lr": 1e-3, ...}`` of nested dictionaries."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, inner in tree.items() for k, v in _leaves(inner, f"{path}.{key}" if path else key).items()}
