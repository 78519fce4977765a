"""Lengths of training, ``"20 epochs"``, ``"1000 steps"``, ``"5%"``, and ranges of its steps, ``"100:105"``."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

from vit_jax.checks import Checked, Range, shown
from vit_jax.types import UsageError

MAX_STEPS = 2**31 - 1
"""A step is an int32."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: ``"20 epochs"``, ``"1000 steps"``, ``"1e6 examples"``, ``"5%"`` or a number of steps."""

    value: float
    unit: str = "steps"

    @classmethod
    def parse(cls, value: Any, path: str) -> Duration:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_STEPS:
            return cls(float(value))
        units = {"%": "percent", "percent": "percent"}
        units |= {u[: len(u) - cut]: u for u in ("steps", "examples", "epochs") for cut in (0, 1)}
        match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:e\+?\d{1,2})?)\s*([a-z%]+)\s*", str(value))
        if not match or match[2] not in units:
            raise UsageError(
                f"{path}={shown(value)} is no duration; write '20 epochs', '1000 steps', '1e6 examples' or '5%'."
            )
        return cls(float(match[1]), units[match[2]])

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.unit == "percent" else f"{self.value:g} {self.unit}"

    def steps(self, *, batch_size: int, num_examples: int, total: int | None = None) -> int:
        """The duration in optimizer steps; percent needs the ``total`` number of steps."""
        if self.unit == "percent":
            if total is None:
                raise UsageError(f"the length of training cannot be {str(self)!r}: a percentage of itself.")
            return round(self.value / 100 * total)
        scale = {"steps": 1.0, "examples": 1 / batch_size, "epochs": num_examples / batch_size}[self.unit]
        if not 0 <= self.value * scale <= MAX_STEPS:
            raise UsageError(f"a duration of {str(self)!r} is not allowed; the most is {MAX_STEPS:,} steps.")
        return round(self.value * scale)


Step = Annotated[int, Range(1, MAX_STEPS)]


@dataclasses.dataclass(frozen=True)
class StepRange(Checked):
    """Steps of a run, counted from 1, the last one included: ``"100:105"``."""

    first: Step
    last: Step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last < self.first:
            raise UsageError(f"steps '{self}' end before they begin; write '{self.last}:{self.first}'.")

    @classmethod
    def parse(cls, value: Any, path: str) -> StepRange:
        match = re.fullmatch(r"\s*(\d{1,10})\s*:\s*(\d{1,10})\s*", value) if isinstance(value, str) else None
        if not match:
            raise UsageError(f"{path}={shown(value)} is no range of steps; write 'FIRST:LAST' such as '100:105'.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"
