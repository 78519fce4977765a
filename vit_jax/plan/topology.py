"""Devices that are not here: topologies of TPUs, and CPUs in any number, with what is published of the chips."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from vit_jax import checks
from vit_jax.config import suggest
from vit_jax.io.extras import needed
from vit_jax.types import UsageError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip
MOST_CPUS = 1024
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu asks for before it is loaded: no TPU, no lock that another process of this machine may hold."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a TPU chip, which is one device.

    HBM as the compiler hands it out (its own message about a program that is too large, libtpu 0.0.42). Peak, bandwidth
    and links: Cloud TPU documentation of v5e, v5p and v6e; of links also jax-ml.github.io/scaling-book/tpus. The clock
    is the peak divided by what the matrix units do in a cycle, a power of two: 1.5 GHz for v5e and 1.75 GHz for the
    others, of which the compiler's own estimates stay below.

    Attributes:
      name: ``"v5e"``.
      hbm: bytes that a program may use.
      peak: dense bfloat16 FLOP/s.
      per_cycle: bfloat16 FLOPs that the matrix units do in a cycle.
      bandwidth: bytes a second between chip and HBM.
      link: bytes a second that one link to a neighbour (ICI) carries in one direction.
      topologies: shapes in which they are to be had.
      wraps: an axis of a multiple of so many chips is a ring, another one a line.
    """

    name: str
    hbm: int
    peak: float
    per_cycle: int
    bandwidth: float
    link: float
    topologies: tuple[str, ...]
    wraps: int

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak / self.per_cycle

    def links(self, shape: Sequence[int]) -> int:
        """Links by which a chip sends at the same time where the devices of ``shape`` exchange.

        On a ring two for each axis. On a line one: its ends have no more, and the others wait for them.
        """
        return sum((2 if n % self.wraps == 0 else 1) for n in shape if n > 1)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", int(15.75 * 2**30), 197e12, 2**17, 819e9, 50e9, FLAT, 16),
        Chip("v5p", int(95.74 * 2**30), 459e12, 2**18, 2765e9, 100e9, CUBIC, 4),
        Chip("v6e", int(31.25 * 2**30), 918e12, 2**19, 1640e9, 100e9, FLAT, 16),
    )
}
"""Those whose figures are all published. (A topology of v4 counts the two cores of a chip as devices.)"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
      name: ``"v5e:4x4"``.
      chip: of which kind; None for CPUs.
      devices: all of them, in the order of JAX.
      hosts: processes that they belong to.
    """

    name: str
    chip: Chip | None
    devices: Sequence[Any]
    hosts: int

    @property
    def memory(self) -> int:
        """Bytes that one device has for a program; CPU devices share this machine's."""
        return checks.physical_memory() // len(self.devices) if self.chip is None else self.chip.hbm

    def links(self, mesh: Any, group: Sequence[int]) -> int:
        """Links by which a chip sends where the devices at the places ``group`` of ``mesh`` (() for all) exchange."""
        if self.chip is None:
            return 1
        chosen = [mesh.devices.flat[i] for i in group] or list(self.devices)
        spans, whole = (
            [len(set(column)) for column in zip(*(d.coords for d in devices), strict=True)]
            for devices in (chosen, self.devices)
        )
        return max(1, self.chip.links([n if n == most else min(n, 2) for n, most in zip(spans, whole, strict=True)]))


def find(name: str) -> Topology:
    """The devices of ``"v5e:16x16"``, ``"v5p:4x4x4"``, ``"v6e:4x4"`` or ``"cpu:8"``.

    Raises:
      UsageError: there is no such topology, or this process has begun with fewer CPUs.
      UserError: the TPU's compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu":
        return _cpus(name, shape)
    if kind not in CHIPS:
        raise UsageError(
            f"{name!r} is no topology that is known{suggest(kind, CHIPS)} Write {', '.join(CHIPS)} and a shape, "
            "such as v5e:4x4, or cpu:8."
        )
    chip = CHIPS[kind]
    if shape not in chip.topologies:
        raise UsageError(f"{name!r} is no topology of {kind}; there are {', '.join(chip.topologies)}.")
    with needed("planning for TPUs", "tpu-compile"):
        import libtpu  # noqa: F401
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    with quiet():
        devices: Any = topologies.get_topology_desc(name, platform="tpu", **options(shape)).devices
    return Topology(name, chip, devices, len({device.process_index for device in devices}))


def options(shape: str) -> dict[str, Any]:
    """What JAX has to be told beside the name of a topology: a host has four chips or more, unless it is said."""
    return {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}


def _cpus(name: str, text: str) -> Topology:
    if not re.fullmatch(r"[1-9]\d{0,4}", text) or int(text) > MOST_CPUS:
        raise UsageError(f"{name!r} is no number of CPU devices; write cpu:8, with 1 to {MOST_CPUS:,} of them.")
    count = int(text)
    with contextlib.suppress(RuntimeError):  # JAX has begun: there are as many as there are
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UsageError(
            f"this process has begun with {len(devices)} CPU devices, and {name!r} takes {count}; set "
            f"JAX_NUM_CPU_DEVICES={count} before Python starts."
        )
    return Topology(name, None, devices[:count], 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libraries in C++ write to standard error off the terminal, unless the block ends the process."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
