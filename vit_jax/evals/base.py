"""The contract between the training loop and evaluators."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from vit_jax.io import atomic
from vit_jax.objectives.base import Apply
from vit_jax.types import Batch, Params


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
        the pictures (:meth:`draw`).
        """
        path = pathlib.Path(folder) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**extra, **self.results(class_names)}
        if self.checkpoint:
            content["checkpoint"] = self.checkpoint
        text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
        atomic.write_text(path, text + "\n")
        if plots:
            self.draw(path.parent, class_names)


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


def combine(reports: Sequence[Report]) -> Report:
    """One report with the metrics, arrays, tables and pictures of all; where names meet, the later one's stays."""
    if len(reports) == 1:
        return reports[0]
    metrics = {k: v for r in reports for k, v in r.metrics.items()}
    arrays = {k: v for r in reports for k, v in r.arrays.items()}
    return Combined(metrics, arrays, tuple(reports))


@runtime_checkable
class Evaluator(Protocol):
    """A frozen dataclass in ``EVALUATORS``; it scores every example whose mask is True, once."""

    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics it reports, known before anything ran."""

    def __call__(
        self, apply: Apply, params: Params, batches: Iterable[Batch], info: DataInfo, objective: Any
    ) -> Report:
        """Scores the model ``apply(params, ...)``.

        Args:
          apply: the model as a function of its parameters, not jitted, the same object at every call.
          params: its parameters, on the device.
          batches: prepared batches on the device, all of one shape; the last is filled up with masked rows.
          info: of the data that the model was trained on, or of the evaluator's own, with the run's encoder of texts.
          objective: what the model was trained with; it says what logits mean.
        """
        ...


def finite(value: Any) -> Any:
    """``value`` with NumPy numbers made plain and NaN and infinities made None, as JSON needs."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
