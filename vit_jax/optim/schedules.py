"""Learning-rate schedules: a linear warm-up from 0, then one of :data:`SCHEDULES` down to a final value.

A schedule is a value: ``schedule(t, n, steps_of)`` is the fraction of the peak learning rate ``t`` steps after the
warm-up, of ``n`` such steps. :func:`make` turns it into a pure function of the optimizer step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Share
from vit_jax.config import Duration
from vit_jax.types import Array, UserError

StepsOf = Callable[[Duration], int]
"""Resolves a :class:`Duration` to optimizer steps; only the training run knows epochs and batch size."""
ScheduleFn = Callable[[Array | int], jax.Array]
"""Optimizer step (int or int32[], traced or not) -> learning rate, float32[]."""


@runtime_checkable
class Schedule(Protocol):
    """What a row of :data:`SCHEDULES` builds."""

    def __call__(self, t: jax.Array, n: int, steps_of: StepsOf) -> jax.Array:
        """Fraction of the peak learning rate at step ``t`` (float32[], in [0, n]) after the warm-up."""


@dataclasses.dataclass(frozen=True)
class Falling(Checked):
    """A schedule that falls from the first step after the warm-up to the last.

    Attributes:
      end: final learning rate as a fraction of the peak.
    """

    end: Share = 0.0


@dataclasses.dataclass(frozen=True)
class Cosine(Falling):
    """Half a cosine from the peak to ``end`` times the peak (SGDR without restarts, arXiv:1608.03983, eq. 5)."""

    def __call__(self, t: jax.Array, n: int, steps_of: StepsOf) -> jax.Array:
        return self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * t / n))


@dataclasses.dataclass(frozen=True)
class Linear(Falling):
    """A straight line from the peak to ``end`` times the peak; SAM for ViT uses ``end=0.01`` (arXiv:2106.01548)."""

    def __call__(self, t: jax.Array, n: int, steps_of: StepsOf) -> jax.Array:
        return self.end + (1 - self.end) * (n - t) / n


@dataclasses.dataclass(frozen=True)
class Constant(Checked):
    """The peak, then a linear ``cooldown`` to ``end`` times the peak at the end (arXiv:2405.18392, section 3).

    Attributes:
      cooldown: length of the linear fall at the end of training.
      end: final learning rate as a fraction of the peak.
    """

    cooldown: Duration = dataclasses.field(default=Duration(0))
    end: Share = 0.0

    def __call__(self, t: jax.Array, n: int, steps_of: StepsOf) -> jax.Array:
        return _cool(jnp.ones_like(t), t, n, steps_of(self.cooldown), self.end)


@dataclasses.dataclass(frozen=True)
class Rsqrt(Checked):
    """``sqrt(timescale / (timescale + t))`` with a linear ``cooldown`` to ``end`` (arXiv:2106.04560, section 3.5).

    Attributes:
      timescale: steps until the rate has fallen to 0.71 of the peak.
      cooldown: length of the linear fall at the end of training.
      end: final learning rate as a fraction of the peak.
    """

    timescale: Duration = dataclasses.field(default=Duration(10_000))
    cooldown: Duration = dataclasses.field(default=Duration(10, "percent"))
    end: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timescale.value > 0:
            raise UserError(f"rsqrt timescale={self.timescale} is not allowed; give a positive duration.")

    def __call__(self, t: jax.Array, n: int, steps_of: StepsOf) -> jax.Array:
        scale = max(steps_of(self.timescale), 1)
        return _cool(jnp.sqrt(scale / (scale + t)), t, n, steps_of(self.cooldown), self.end)


SCHEDULES: dict[str, type] = {"cosine": Cosine, "linear": Linear, "rsqrt": Rsqrt, "constant": Constant}


def _cool(value: jax.Array, t: jax.Array, n: int, steps: int, end: float) -> jax.Array:
    """``value``, blended linearly into ``end`` over the last ``steps`` of ``n``."""
    if steps > n:
        raise UserError(
            f"the schedule cools down for {steps} steps but only {n} follow the warm-up; shorten one of them."
        )
    if steps == 0:
        return value
    left = jnp.minimum((n - t) / steps, 1.0)
    return left * value + (1 - left) * end


def make(schedule: Schedule, *, peak: float, warmup: int, total: int, steps_of: StepsOf) -> ScheduleFn:
    """The learning rate as a function of the step: 0 at step 0 (the peak without warm-up), ``peak`` at ``warmup``.

    After ``total`` it stays at its final value. Never negative; safe for traced steps.

    Raises:
      UserError: a warm-up (or warm-up and cool-down) longer than the training.
    """
    if warmup > total:
        fix = "shorten it, optim.warmup=5% for instance"
        raise UserError(f"the warm-up of {warmup} steps is longer than the training of {total}; {fix}.")
    n = max(total - warmup, 1)

    def learning_rate(step: Any) -> jax.Array:
        t = jnp.asarray(step).astype(jnp.float32) - warmup
        rising = (t + warmup) / max(warmup, 1)
        share = jnp.where(t < 0, rising, schedule(jnp.clip(t, 0.0, n), n, steps_of))
        return peak * jnp.clip(share, 0.0, 1.0)

    jax.eval_shape(learning_rate, total)  # mistakes in durations surface here, not in the first step
    return learning_rate
