"""The contract between the training loop and evaluators."""

from __future__ import annotations

import abc
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import flax.linen as nn
import jax
import numpy as np

from vit_jax import hosts
from vit_jax.checks import Checked
from vit_jax.io import atomic, jsonfile, mirror
from vit_jax.models import Variables
from vit_jax.objectives.base import Apply, Objective
from vit_jax.types import Batch, Params, UsageError, UserError

Split = Literal["train", "val"]
Transform = Callable[[jax.Array], jax.Array]


class DataInfo(Protocol):
    """What an evaluator asks of a data source; ``vit_jax.data.sources.Info`` has it."""

    @property
    def num_classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def encoder(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
      metrics: name -> number, such as ``accuracy``; the caller puts the name of the data split in front.
      arrays: name -> array from which a metric was computed, float64 or int64.
      checkpoint: folder of the checkpoint that was evaluated; empty where it was a state in memory.
    """

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    checkpoint: str = dataclasses.field(default="", kw_only=True)

    def prefixed(self, prefix: str) -> dict[str, float]:
        """The metrics as rows of ``metrics.jsonl`` name them: ``val/accuracy``."""
        return {f"{prefix}/{name}": value for name, value in self.metrics.items()}

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Plain data for ``results.json``; evaluators add their tables."""
        return {"metrics": self.metrics}

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes the pictures; evaluators add theirs."""

    def save(
        self, folder: str | os.PathLike[str], class_names: tuple[str, ...], *, plots: bool = True, **extra: Any
    ) -> None:
        """Writes ``results.json`` (:meth:`results` and ``extra``, such as the step; NaN is null) and, with ``plots``,
        the pictures (:meth:`draw`); of several hosts the first does.

        Raises:
          UserError: they cannot be written.
        """
        if not hosts.first():
            return
        path = mirror.local(folder, pull=False) / "results.json"
        content = {**extra, **self.results(class_names)}
        if self.checkpoint:
            content["checkpoint"] = self.checkpoint
        with atomic.writing(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            jsonfile.write(path, finite(content))
        if plots:
            with atomic.writing(f"the pictures in {path.parent}"):
                self.draw(path.parent, class_names)
        mirror.send(path.parent)


@dataclasses.dataclass(frozen=True)
class Combined(Report):
    """Several reports as one: see :func:`combine`."""

    parts: Sequence[Report] = ()

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """The tables of all."""
        tables = [part.results(class_names) for part in self.parts]
        return {k: v for table in tables for k, v in table.items()} | super().results(class_names)

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        for part in self.parts:
            part.draw(folder, class_names)


@dataclasses.dataclass(frozen=True)
class Prefixed(Report):
    """A report whose metrics, arrays, tables and pictures bear a prefix: see :func:`prefixed`."""

    prefix: str = ""
    report: Report = Report({})

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """The tables, under the prefix."""
        return {self.prefix: self.report.results(class_names), **super().results(class_names)}

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes the pictures into a folder of that name."""
        (folder / self.prefix).mkdir(parents=True, exist_ok=True)
        self.report.draw(folder / self.prefix, class_names)


def prefixed(report: Report, prefix: str | None) -> Report:
    """``report`` with ``prefix`` in front of its metrics and arrays; as it is without one."""
    if not prefix:
        return report
    arrays = {f"{prefix}/{k}": v for k, v in report.arrays.items()}
    return Prefixed(report.prefixed(prefix), arrays, prefix, report)


def combine(reports: Sequence[Report]) -> Report:
    """One report with the metrics, arrays, tables and pictures of all; where names meet, the later one's stays."""
    if len(reports) == 1:
        return reports[0]
    metrics = {k: v for r in reports for k, v in r.metrics.items()}
    arrays = {k: v for r in reports for k, v in r.arrays.items()}
    return Combined(metrics, arrays, tuple(reports))


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """The model that is scored, and what an evaluator may ask for besides.

    Attributes:
      model: unbound module.
      apply: the model as a function of its parameters, ``apply(params, *inputs, train=..., method=...)``.
      params: its parameters, on the device.
      objective: what the model was trained with; it says what logits mean.
      info: of the data that is scored, with the run's encoder of texts.
      class_names: the classes that the model was trained on.
      read: ``(split, transform, rows) -> batches``, see :meth:`batches`.
      programs: what :meth:`program` has made; whoever shares it shares what was compiled.
      found: what evaluators of the same parameters on the same data keep for one another, such as features.
      transform: pure function of the canvas uint8[B,S,S,3] before it is prepared for the model, a corruption for
        instance; None for none.
    """

    model: nn.Module
    apply: Apply
    params: Params | Variables
    objective: Objective
    info: DataInfo
    class_names: tuple[str, ...]
    read: Callable[[Split, Transform | None, np.ndarray | None], Iterable[Batch]]
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    found: dict[Any, Any] = dataclasses.field(default_factory=dict)
    transform: Transform | None = None

    def batches(self, split: Split = "val", rows: np.ndarray | None = None) -> Iterable[Batch]:
        """Every example of one of the evaluator's ``splits``, once: prepared batches on the device, all of one shape.

        The last batch is filled up with rows whose ``mask`` is False. ``rows`` int[N] asks for some of the examples,
        as ``index`` counts them, in that order; there ``index`` counts ``rows``.
        """
        return self.read(split, self.transform, rows)

    def program(self, make: Callable[..., Any], *static: Any) -> Any:
        """``make(apply, *static)``, a jitted function, made once for equal ``static``, which must be hashable."""
        key = (make, self.apply, *static)
        if key not in self.programs:
            self.programs[key] = make(self.apply, *static)
        return self.programs[key]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(Checked, abc.ABC):
    """A frozen dataclass in ``EVALUATORS``; it scores every example whose mask is True, once.

    Attributes:
      data: a source to evaluate on instead of the run's own validation part.
      prefix: name of the folder of its pictures, put before the names of its metrics, so that two of a kind can run;
        None puts nothing.
    """

    data: str | None = None
    prefix: str | None = None
    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics it reports, known before anything ran."""
    splits: ClassVar[tuple[Split, ...]] = ("val",)
    """The parts of the data that it reads; a probe is fitted to ``"train"``."""

    @abc.abstractmethod
    def __call__(self, context: EvalContext) -> Report:
        """Scores the model of ``context``; :attr:`prefix` is the caller's affair."""

    @property
    def reported(self) -> tuple[str, ...]:
        """:attr:`metrics` with the prefix in front.

        Raises:
          UserError: the prefix is no name of a folder.
        """
        if self.prefix is not None and not re.fullmatch(r"\w[\w.-]{0,99}", self.prefix):
            raise UserError(f"prefix={self.prefix!r} is no name; give letters, digits, '_', '-' and '.', such as 'v2'.")
        return tuple(f"{self.prefix}/{metric}" if self.prefix else metric for metric in self.metrics)


def reported(evaluators: Sequence[Evaluator]) -> list[str]:
    """The names of all their metrics, as :meth:`Report.prefixed` gives them: ``val/accuracy``.

    Raises:
      UsageError: two report one.
    """
    names = [f"val/{name}" for evaluator in evaluators for name in evaluator.reported]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two evaluators report {twice[0]}; give one of them a prefix, or leave it out.")
    return names


def finite(value: Any) -> Any:
    """``value`` with NumPy numbers made plain and NaN and infinities made None, as JSON needs."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
