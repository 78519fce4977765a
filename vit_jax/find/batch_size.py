"""The largest batch that the devices hold, and the smallest that is as fast, by a run's own step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import checks, sharding
from vit_jax import config as configs
from vit_jax.find import base
from vit_jax.io import text
from vit_jax.train import setup
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.train.step import check_batch
from vit_jax.types import UsageError, UserError

GROWTH, SLOWER = 1.05, 2
"""A larger batch is worth it if it gives as many times the examples a second; so many that are not end the timing."""
ROUNDS = 3
"""Steps that a batch is timed by."""
MOST = 2**20
"""Examples of a batch, as many as a configuration allows."""


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """A batch and what its step takes.

    Attributes:
      size: examples per step, over all devices.
      memory: bytes of each device: state, batch and what is in between, as the compiler accounts for them.
      fits: whether a device has as much.
      rate: examples a second; None where it was not timed.
    """

    size: int
    memory: int
    fits: bool
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class BatchSearch:
    """Batches by size.

    Attributes:
      rows: from the smallest on.
      memory: bytes that a device has for a step.
      where: whose memory that is.
      examples: of the training data.
      compares: whether the objective compares the examples of a batch with each other, so that another batch is another
        loss.
    """

    rows: tuple[BatchSize, ...]
    memory: int
    where: str
    examples: int
    compares: bool

    @property
    def largest(self) -> BatchSize:
        """The largest that fits.

        Raises:
          UserError: none does.
        """
        fitting = [row for row in self.rows if row.fits]
        if not fitting:
            need, have = self.rows[0].memory / 2**30, self.memory / 2**30
            raise UserError(
                f"a batch of {self.rows[0].size} takes {need:,.2f} GiB, and {self.where} is {have:,.2f} GiB; take a "
                "smaller model or image, more --config.accumulate, or split it with --config.mesh.fsdp."
            )
        return fitting[-1]

    @property
    def enough(self) -> BatchSize:
        """The smallest that the fastest is less than :data:`GROWTH` times as fast as."""
        timed = [(row, row.rate) for row in self.rows if row.rate]
        best = max((rate for _, rate in timed), default=0.0)
        return next((row for row, rate in timed if best < GROWTH * rate), self.largest)

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        best = {"largest": self.largest.size, "fast enough": self.enough.size, "available bytes": self.memory}
        return best | {"compares examples": self.compares, "rows": [dataclasses.asdict(row) for row in self.rows]}


def find_batch(
    config: str | Mapping[str, Any], *, changes: Mapping[str, Any] | None = None, most: int | None = None
) -> BatchSearch:
    """How much memory and time a run's step takes by the size of its batch. Nothing is trained.

    Sizes are ``accumulate`` times the devices that share a batch, times powers of two, as far as groups of SAM allow.
    Each is compiled and its memory compared with that of a device, and timed, until they are no longer faster. Where
    memory ends is then told from how it grew, and looked at there.

    Args:
      config: see :func:`vit_jax.train`.
      changes: keys with other values.
      most: largest size to try; None is the number of training examples.

    Raises:
      UserError: a mistake in the configuration.

    Example:
      >>> vj.find_batch("digits").largest.size
      1024
    """
    raw = base.resolved(config, changes or {})
    sizes = list(_sizes(configs.parse(TrainConfig, raw)))
    built = base.built(raw, {"batch_size": sizes[0], "duration": 1, "optim.warmup": 0})
    sizes = [size for size in sizes if size <= (most or len(built.train))] or sizes[:1]
    memory, where = room(built.mesh)
    with contextlib.closing(built.train_batches(0)) as batches:
        examples = next(batches)

    def measured(size: int, timed: bool) -> BatchSize:
        with jax.set_mesh(built.mesh):
            program = built.step.lower(built.shapes, _shapes(examples, size)).compile()
            row = BatchSize(size, need := _need(program), need <= memory)
            try:
                return (
                    dataclasses.replace(row, rate=_rate(built, program, examples, size)) if timed and row.fits else row
                )
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                return dataclasses.replace(row, fits=False)  # others use the device, or its memory is in pieces

    rows = search(measured, sizes, memory)
    return BatchSearch(tuple(rows), memory, where, len(built.train), built.config.objective.min_batch_size > 1)


def search(measured: Callable[[int, bool], BatchSize], sizes: Sequence[int], memory: int) -> list[BatchSize]:
    """Those of ``sizes``, which rise, that are looked at: see :func:`find_batch`.

    Args:
      measured: a size, and whether to time it -> what its step takes.
      sizes: from the smallest on.
      memory: bytes that a device has.
    """
    rows: dict[int, BatchSize] = {}

    def fits(size: int) -> bool:
        rows[size] = rows.get(size) or measured(size, False)
        return rows[size].fits

    best, slower = 0.0, 0
    for size in sizes:
        row = rows[size] = measured(size, True)
        rate = row.rate or 0.0
        slower, best = (0, rate) if rate >= GROWTH * best else (slower + 1, best)
        if not row.fits or slower == SLOWER:
            break
    last = len(rows) - 1
    if row.fits and last + 1 < len(sizes):
        before = rows[sizes[last - 1]]
        slope = max(0.0, (row.memory - before.memory) / (row.size - before.size))
        at = max(i for i in range(last, len(sizes)) if row.memory + slope * (sizes[i] - row.size) <= memory)
        for way in (1, -1):  # up to the first that does not fit, down to the last that does
            while at < len(sizes) and fits(sizes[at]) == (way == 1):
                at += way
    return sorted(rows.values(), key=lambda row: row.size)


def room(mesh: Mesh) -> tuple[int, str]:
    """Bytes that each device of ``mesh`` has for a step, and whose memory that is."""
    device, local = mesh.local_devices[0], len(mesh.local_devices)
    if device.platform != "cpu":
        return sharding.memory(device), f"the memory of a {device.device_kind}"
    return _free() // local, "what this machine has free" + (f" for each of {local} devices" if local > 1 else "")


def _free() -> int:
    """Bytes of this machine that no process needs; where the system does not tell, all of them."""
    try:
        rows = dict(line.split(":", 1) for line in text.lines(text.read("/proc/meminfo")))
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (UserError, KeyError, ValueError):
        return checks.physical_memory()


def _sizes(c: TrainConfig) -> Iterator[int]:
    """Batches that the mesh and the configuration divide, from the smallest on."""
    mesh = setup.make_mesh(c.mesh)
    unit = c.accumulate * mesh.shape["replica"] * mesh.shape["fsdp"]
    for power in range(MOST.bit_length()):
        size, group = unit * 2**power, None if c.optim.sam is None else c.optim.sam.m
        with contextlib.suppress(UsageError):
            check_batch(size, c.accumulate, group, mesh)
            if c.objective.min_batch_size <= size <= MOST:
                yield size


def _shapes(examples: Mapping[str, np.ndarray], size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in examples.items()}


def _need(program: jax.stages.Compiled) -> int:
    """Bytes of each device while the step runs; of the state that it is given it makes the next one."""
    m = program.memory_analysis()
    if m is None:
        raise UserError(
            "the compiler of these devices does not tell what memory a program takes; try batches by training."
        )
    return m.argument_size_in_bytes + m.temp_size_in_bytes + max(0, m.output_size_in_bytes - m.alias_size_in_bytes)


def _rate(built: Setup, program: Any, examples: Any, size: int) -> float:
    """Examples a second of the fastest of some steps; what is read is repeated to fill the batch."""
    rows = len(sharding.host_rows(built.mesh, size))
    batch = sharding.put({k: np.resize(v, (rows, *v.shape[1:])) for k, v in examples.items()}, built.mesh)
    state, frozen, seconds = built.init(), built.step.frozen_inputs(), []
    for _ in range(1 + ROUNDS):
        begun = time.perf_counter()
        state, metrics = program(state, batch, frozen)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begun)
    return size / min(seconds[1:])
