"""Early stopping: a run ends once its metric has not become better for a number of evaluations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint import sign


@dataclasses.dataclass
class Patience:
    """How long a metric has not become better. Checkpoints keep it, so that a resumed run stops where it would have.

    Attributes:
      metric: name, such as ``val/accuracy``; of a loss, an error or a rank less is better.
      limit: evaluations without a better value that end the run; None never does.
      value: the best so far; None before there was one.
      step: when that was.
      since: evaluations from then on.
    """

    metric: str
    limit: int | None
    value: float | None = None
    step: int = 0
    since: int = 0

    @classmethod
    def resumed(cls, metric: str, limit: int | None, meta: Mapping[str, Any]) -> Patience:
        """As the checkpoint with this ``meta`` kept it; from the start for another metric, or where it kept nothing."""
        kept = meta.get("patience", {})
        if kept.get("metric") != metric:
            return cls(metric, limit)
        return cls(metric, limit, kept.get("value"), kept.get("step", 0), kept.get("since", 0))

    def see(self, step: int, row: Mapping[str, float]) -> None:
        """An evaluation's metrics; what is not finite is no better than anything."""
        value = row.get(self.metric, math.nan)
        if math.isfinite(value) and (self.value is None or sign(self.metric) * (value - self.value) > 0):
            self.value, self.step, self.since = value, step, 0
        else:
            self.since += 1

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return self.limit is not None and self.since >= self.limit

    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "limit"}

    def __str__(self) -> str:
        best = "never finite" if self.value is None else f"best with {self.value:.6g} at step {self.step}"
        return f"{self.metric} was {best}, and not better in {self.since} evaluations (patience={self.limit})"
