"""Where the time of a run goes, over all of its lives."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ("step", "start", "compile", "input", "evaluation", "checkpoint", "lost")
"""``start``: opening the data and the checkpoint; ``compile``: of the train step; ``input``: waiting for it; ``lost``:
between a checkpoint and the start of the run that goes on from it; ``step``: what is left."""


class Goodput:
    """Wall time of a run by what it was spent on.

    Args:
      begun: ``time.monotonic()`` of when the process began with it.
    """

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self._now: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._before: dict[str, float] = {}

    def resume(self, meta: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept of :meth:`meta`; {} where it kept nothing."""
        if meta:
            begun = time.time() - (time.monotonic() - self._begun)
            self._before = dict(meta["seconds"])
            self._now["lost"] = max(0.0, begun - meta["until"])

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the time inside for one of :data:`KINDS`."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._now[kind] += time.monotonic() - since

    def seconds(self) -> dict[str, float]:
        """Kind -> seconds, of all lives."""
        now = dict(self._now)
        known = sum(now.get(kind, 0.0) for kind in KINDS[1:-1])  # what is lost was before this life began
        now["step"] = max(0.0, time.monotonic() - self._begun - known)  # waiting for the devices is part of it
        return {kind: self._before.get(kind, 0.0) + now.get(kind, 0.0) for kind in KINDS}

    def row(self) -> dict[str, float]:
        """Shares, as a row of the log names them: ``speed/goodput/step``."""
        seconds = self.seconds()
        total = sum(seconds.values()) or 1.0
        return {f"speed/goodput/{kind}": value / total for kind, value in seconds.items()}

    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds(), "until": time.time()}

    def __str__(self) -> str:
        seconds = self.seconds()
        total = sum(seconds.values())
        parts = [f"{kind} {value / total:.0%}" for kind, value in seconds.items() if value >= 0.005 * total > 0]
        return f"{total:.0f} s: {', '.join(parts)}"
