"""Timing candidates against each other in one run: A B A B, medians, ratios with their spread."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a call of one candidate takes, a number per round.

    Attributes:
      seconds: by the clock.
      work: seconds of all cores together, threads that wait by spinning included; None where they were not measured.
    """

    seconds: np.ndarray
    work: np.ndarray | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def median_work(self) -> float:
        assert self.work is not None
        return float(np.median(self.work))

    def over(self, other: Timing) -> tuple[float, float, float]:
        """How many times faster than ``other``: median, 10th and 90th percentile over the paired rounds."""
        ratios = other.seconds / self.seconds
        return float(np.median(ratios)), float(np.percentile(ratios, 10)), float(np.percentile(ratios, 90))

    def compared(self, what: str, other: Timing) -> dict[str, float]:
        """:meth:`over` as columns of a table: ``"what (median)"``, ``"what (10th percentile)"`` and so on."""
        names = (f"{what} ({name})" for name in ("median", "10th percentile", "90th percentile"))
        return dict(zip(names, self.over(other), strict=True))


def alternate(candidates: Mapping[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, Timing]:
    """Times every candidate once a round, ``calls`` calls each, after two calls that do not count.

    Args:
      candidates: name -> function that starts the computation and returns its arrays.
      rounds: how often.
      calls: per round, for computations of less than some milliseconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        jax.block_until_ready(run())
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                out = run()
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: Timing(np.asarray(s)) for name, s in seconds.items()}


UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 for bfloat16"}
"""Flags of a CPU that multiplies bfloat16, and what that is called; one without is slower in it than in float32."""


def processor() -> str:
    """What computes: ``"NVIDIA H200"``, or the name of the CPU, how many of its cores this process may use, and whether
    it multiplies bfloat16."""
    kind = jax.local_devices()[0].device_kind
    if kind != "cpu":
        return kind
    text = _read("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE) or [platform.processor()]
    flags = re.findall(r"^flags\s*: (.+)$", text, re.MULTILINE)
    units = [f", {called}" for flag, called in UNITS.items() if flag in " ".join(flags[:1]).split()]
    units = units or [", no products in bfloat16"] * bool(flags)
    return f"{names[0] or platform.machine()}, {cores()} cores{''.join(units[:1])}"


def cores() -> int:
    """Cores that this process may use, for which XLA starts as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_bytes().decode("utf-8", "replace")
    except OSError:  # another system than Linux
        return ""
