"""Metrics on their way from the devices to the log, and how fast steps are."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax import checkpoint
from vit_jax.models import cost
from vit_jax.train.goodput import Goodput
from vit_jax.train.setup import Setup
from vit_jax.types import UserError

AHEAD = 2
"""Steps the host may be ahead of the device: enough to hide dispatch, few enough to measure waiting for input."""


class Meter:
    """Keeps metrics on the device until they are due, bounds how far the host runs ahead, and measures speed.

    Args:
      setup: of the run.
      workdir: the run's folder.
      goodput: told of the time without input.
    """

    def __init__(self, setup: Setup, workdir: pathlib.Path, goodput: Goodput) -> None:
        self._setup, self._workdir, self._goodput = setup, workdir, goodput
        self._pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.restart()

    @functools.cached_property
    def _steps_per_second(self) -> float:
        """Optimizer steps a second at the devices' peak: found out at the first log, for a CPU by measuring."""
        device = self._setup.mesh.local_devices[0]
        devices = jax.process_count() if device.platform == "cpu" else self._setup.mesh.size  # CPUs share their cores
        return devices * cost.peak(device, self._setup.model.dtype) / self._setup.step_flops

    def restart(self) -> None:
        """Forgets the time that passed, after an evaluation for instance."""
        self._since, self._waited, self._blocked, self._steps = time.perf_counter(), 0.0, 0.0, 0
        self._told = (self._since, 0.0, 0.0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is time without input."""
        begun = time.perf_counter()
        with self._goodput.spent("input"):
            yield
        self._waited += time.perf_counter() - begun

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; waits for the one ``AHEAD`` steps before."""
        self._pending.append((step, metrics))
        self._steps += 1
        if len(self._pending) > AHEAD:
            begun = time.perf_counter()
            jax.block_until_ready(self._pending[-1 - AHEAD][1])
            self._blocked += time.perf_counter() - begun

    def times(self) -> tuple[float, float]:
        """Seconds since the last call, or :meth:`restart`: without input, and not waiting for the devices."""
        now, (then, waited, blocked) = time.perf_counter(), self._told
        self._told = (now, self._waited, self._blocked)
        return self._waited - waited, now - then - (self._blocked - blocked)

    def flush(self) -> dict[str, float]:
        """The latest step's values, after a look at all of them.

        Raises:
          UserError: a loss or a gradient is not finite; it names the step and the first such parameter.
        """
        steps = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        values: dict[str, float] = {}
        for step, metrics in steps:
            finite = metrics.pop("finite")
            if not (finite.all() and np.isfinite([metrics["loss"], metrics["update_norm"]]).all()):
                kept = checkpoint.kept(self._workdir / checkpoint.FOLDER)
                raise UserError(_blame(self._setup, step, float(metrics["loss"]), finite, kept))
            values = {k: float(v) for k, v in metrics.items()}
        return values

    def speed(self) -> dict[str, float]:
        """Images per second, MFU and share of time waiting for input, since the last call."""
        passed = max(time.perf_counter() - self._since, 1e-9)
        row = {
            "speed/images_per_s": self._steps * self._setup.config.batch_size / passed,
            "speed/mfu": self._steps / passed / self._steps_per_second,
            "speed/waiting": self._waited / passed,
        }
        self.restart()
        return row


def _blame(setup: Setup, step: int, loss: float, finite: np.ndarray, kept: str) -> str:
    bad = list(itertools.compress(setup.trained, ~finite))
    where = "the update is not finite"
    if bad:
        where = f"the gradient of {bad[0]} is the first of {len(bad)} that are not finite"
    return (
        f"step {step}: {where} (loss {loss:g}); {kept}. Lower optim.lr, lengthen optim.warmup or set optim.clip_norm."
    )
