"""What the hosts of a run agree on: that it is one run, and at which step it stops.

Beside each step a tiny program gathers one row of numbers from every host. They are read a few steps later, by all
hosts at the same step, so that nobody waits, and what follows from them follows everywhere at once.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import hosts, sharding
from vit_jax.config import difference
from vit_jax.io import jsonfile
from vit_jax.train.progress import say
from vit_jax.types import UsageError

COLUMNS = ("stop", "truncated", "waited", "busy")
SLOTS = 8
"""Unreadable examples that a host can name at a step; the others follow at the next ones."""
HELD_UP = 1.5
"""Times the median host's time of its own: a host that takes more holds the run up."""
NOTICED = 0.1
"""Seconds a step; what is less is not worth a word."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What one host tells of a step.

    Attributes:
      stop: it was asked to stop.
      waited: seconds it waited for its input.
      busy: seconds in which it did not wait for the devices; those for input count.
      unreadable: examples that it could not read.
      truncated: captions that it cut.
    """

    stop: bool
    waited: float
    busy: float
    unreadable: Sequence[int]
    truncated: int


class Agreement:
    """Every host's :class:`Part` in each step, known to all of them.

    Args:
      mesh: devices of all hosts.
      ahead: steps that a host may be ahead of the devices: what is told at a step is heard as many steps later; on one
        host, which has nobody to hear from, at once.

    Attributes:
      stop: numbers of the hosts that were asked to stop.
      truncated: captions that were cut.
      unreadable: example -> the host that could not read it.
    """

    def __init__(self, mesh: Mesh, ahead: int) -> None:
        self.stop: list[int] = []
        self.truncated = 0
        self.unreadable: dict[int, int] = {}
        self._gather, self._ahead = sharding.gather_hosts(mesh), ahead if jax.process_count() > 1 else 0
        self._untold: collections.deque[int] = collections.deque()
        self._pending: collections.deque[Any] = collections.deque()
        self._steps, self._seconds = 0, np.zeros((jax.process_count(), 2))
        self._slow: set[int] = set()

    def tell(self, part: Part) -> None:
        """Tells the others of a step, which all hosts take, and hears what is due."""
        self._untold.extend(part.unreadable)
        news = [self._untold.popleft() for _ in range(min(SLOTS, len(self._untold)))]
        times = [min(int(seconds * 1e6), 2**31 - 1) for seconds in (part.waited, part.busy)]
        row = [int(part.stop), part.truncated, *times, *news, *[-1] * (SLOTS - len(news))]
        self._pending.append(self._gather(np.array(row, np.int64).astype(np.int32)))
        while len(self._pending) > self._ahead:
            self._hear(np.asarray(self._pending.popleft()))

    def drain(self) -> None:
        """Hears all that was told; every host does so at the same step."""
        while self._pending:
            self._hear(np.asarray(self._pending.popleft()))

    def _hear(self, rows: np.ndarray) -> None:
        self.stop += [int(host) for host in np.flatnonzero(rows[:, 0]) if host not in self.stop]
        self.truncated += int(rows[:, 1].sum())
        self._steps, self._seconds = self._steps + 1, self._seconds + rows[:, 2:4] / 1e6
        for host, row in enumerate(rows[:, len(COLUMNS) :]):
            self.unreadable |= {
                int(i): host for i in row.astype(np.uint32) if i != 2**32 - 1 and i not in self.unreadable
            }

    def asked(self) -> str:
        """Which hosts were asked to stop, where there are several."""
        return f" ({' and '.join(map(hosts.name, self.stop))} was asked to)" if len(self._seconds) > 1 else ""

    def times(self) -> dict[str, float]:
        """Seconds a step that hosts took for themselves since the last call, as a row of the log; {} on one host.

        The devices of all hosts end a step together, so its whole time tells of no host. Once a host is found to hold
        the run up, it is said.
        """
        steps, seconds = max(self._steps, 1), self._seconds
        self._steps, self._seconds = 0, np.zeros_like(seconds)
        if len(seconds) == 1:
            return {}
        waited, busy = (seconds / steps).T
        slowest, median = int(busy.argmax()), float(np.median(busy))
        if busy[slowest] > max(HELD_UP * median, NOTICED) and slowest not in self._slow:
            self._slow.add(slowest)
            say(
                f"{hosts.name(slowest)} takes {busy[slowest]:.2g} s of a step for itself, {waited[slowest]:.2g} of "
                f"them waiting for its input; half of the hosts take {median:.2g} s or less"
            )
        return {
            "speed/hosts/busy_s": median,
            "speed/hosts/slowest_s": float(busy[slowest]),
            "speed/hosts/slowest": float(slowest),
        }


def check_same(facts: Mapping[str, Any]) -> None:
    """Compares what decides a run between all hosts.

    Raises:
      UsageError: ``facts``, plain data, are not the same everywhere; on every host, with the same sentence.
    """
    everyone = [jsonfile.loads(text) for text in hosts.share("what run this is", json.dumps(facts, sort_keys=True))]
    for host, theirs in enumerate(everyone):
        if changes := list(itertools.islice(difference(everyone[0], theirs), 4)):
            which = "; ".join(f"{key}: {was!r:.60} -> {now!r:.60}" for key, was, now in changes)
            raise UsageError(
                f"{hosts.name(host)} has not the same run as {hosts.name(0)} ({which}); start every host with the same "
                "command, code and data."
            )
