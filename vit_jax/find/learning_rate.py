"""A learning rate by a range test (Smith 2017, arXiv:1506.01186), on a run's own step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from vit_jax import checks, sharding
from vit_jax.find import base
from vit_jax.report import plots
from vit_jax.train import start
from vit_jax.types import UsageError, UserError

WINDOW, WORSE = 5, 4.0
"""A loss has diverged where the mean of its last steps is above the first such mean and this many times the least."""


@dataclasses.dataclass(frozen=True)
class Exponential:
    """A schedule that rises by the same factor every step up to the peak, from ``start`` times that."""

    start: float

    def __call__(self, t: jax.Array, n: int, steps_of: Any) -> jax.Array:
        return self.start ** (1 - t / n)


@dataclasses.dataclass(frozen=True)
class RateSweep:
    """What a range test of the learning rate has found.

    Attributes:
      rates: float[N], the learning rate of each step.
      losses: float[N], the loss of each step, before its update.
      diverged: whether the sweep ended because the loss did.
      batch_size: of the steps.
    """

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool
    batch_size: int = 1

    rule: ClassVar[str] = "a tenth of the rate at which the smoothed loss is least"
    """How fastai suggests a rate ("minimum") after the range test of Smith 2017, arXiv:1506.01186, section 3.3."""

    @property
    def smoothed(self) -> np.ndarray:
        """float[N]: losses, cut where they have diverged, averaged over neighbouring steps."""
        most = WORSE * max(self.losses.min(), self.losses[0])
        return plots.smooth(np.minimum(self.losses, most), 1 / 30)

    @property
    def least(self) -> float:
        """The rate at which the smoothed loss is least."""
        return float(self.rates[self.smoothed.argmin()])

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate."""
        return float(self.rates[np.gradient(self.smoothed, np.log(self.rates)).argmin()])

    @property
    def suggestion(self) -> float | None:
        """The learning rate by :attr:`rule`; None where the loss did not fall, or still fell at the end."""
        return None if self.failed else self.least / 10

    @property
    def failed(self) -> str:
        """Why there is no suggestion; empty where there is one."""
        smoothed, at = self.smoothed, int(self.smoothed.argmin())
        if at == len(smoothed) - 1:
            return f"the loss is least at the end, at a rate of {self.rates[-1]:.2g}; raise --most."
        if at == 0 or self.rates[at] < 10 * self.rates[0]:
            return f"the loss is least within ten times the first rate, {self.rates[0]:.2g}; lower --least."
        return ""

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        values = {"rates": self.rates, "losses": self.losses, "smoothed": self.smoothed}
        found = {"suggestion": self.suggestion, "rule": self.rule, "least loss at": self.least}
        found |= {"steepest fall at": self.steepest, "diverged": self.diverged, "batch size": self.batch_size}
        return found | {name: value.tolist() for name, value in values.items()}

    def draw(self, path: pathlib.Path | str) -> None:
        """Writes a picture of loss over rate, with what is suggested."""
        marks = {"least": self.least, "steepest": self.steepest} | (
            {} if self.suggestion is None else {"suggested": self.suggestion}
        )
        plots.rates(self.rates, self.losses, self.smoothed, marks, path)


def find_lr(
    config: str | Mapping[str, Any],
    *,
    changes: Mapping[str, Any] | None = None,
    steps: int = 100,
    least: float = 1e-7,
    most: float = 10.0,
) -> RateSweep:
    """Trains for some steps at a learning rate that rises from ``least`` to ``most``, until the loss diverges.

    Steps, data, augmentation and start (``init``) are those of the run; nothing of it is kept.

    Args:
      config: see :func:`vit_jax.train`.
      changes: keys with other values.
      steps: of the sweep.
      least: first learning rate.
      most: last one.

    Raises:
      UserError: a mistake in the configuration; a loss that is not finite at the first step.

    Example:
      >>> vj.find_lr("digits").suggestion
      0.0012
    """
    checks.Range(0, checks.INFINITE, "()").check("least", least)
    if not (least < most < checks.INFINITE and steps >= 2 * WINDOW):
        raise UsageError(f"least={least:g}, most={most:g}, steps={steps}: rise from least to most in 10 steps or more.")
    swept = {"optim.lr": most, "optim.schedule": Exponential(least / most), "optim.warmup": 0, "duration": steps}
    built = base.built(base.resolved(config, changes or {}), swept)
    with tempfile.TemporaryDirectory() as nothing:
        state, _ = start.start(built, pathlib.Path(nothing))
    with contextlib.closing(built.train_batches(0)) as batches, jax.set_mesh(built.mesh):
        found = sweep(built.step, state, (sharding.put(batch, built.mesh) for batch in batches))
    return dataclasses.replace(found, batch_size=built.config.batch_size)


def sweep(step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]], state: Any, batches: Iterable[Any]) -> RateSweep:
    """Takes steps until there are no more batches or the loss diverges.

    Args:
      step: ``(state, batch) -> (state, metrics)``, of which ``loss`` and ``lr`` are read.
      state: the first one.
      batches: one a step.
    """
    rates: list[float] = []
    losses: list[float] = []
    diverged = False
    for batch in batches:
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])
        diverged = not math.isfinite(loss)
        if diverged and len(losses) < WINDOW:
            raise UserError(f"the loss is {loss:g} after {len(losses)} steps, before any rate could be tried.")
        if not diverged:
            rates.append(float(metrics["lr"]))
            losses.append(loss)
            diverged = _diverged(losses)
        if diverged:
            break
    return RateSweep(np.array(rates), np.array(losses), diverged)


def _diverged(losses: Sequence[float]) -> bool:
    means = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid") if len(losses) >= WINDOW else np.zeros(1)
    return bool(means[-1] > max(means[0], WORSE * means.min()))
