"""Finders: a learning rate by a range test, and the batch that a device holds; both on a run's own step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import checks, sharding
from vit_jax import config as configs
from vit_jax.io import text
from vit_jax.report import plots
from vit_jax.train import inherit, setup, start
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.train.step import check_batch
from vit_jax.types import UsageError, UserError

WINDOW, WORSE = 5, 4.0
"""A loss has diverged where the mean of its last steps is above the first such mean and this many times the least."""
GROWTH, SLOWER = 1.05, 2
"""A larger batch is worth it if it gives as many times the examples a second; so many that are not end the timing."""
ROUNDS = 3
"""Steps that a batch is timed by."""
MOST = 2**20
"""Examples of a batch, as many as a configuration allows."""


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
    built = _built(_raw(config, changes or {}), swept)
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
    raw = _raw(config, changes or {})
    sizes = list(_sizes(configs.parse(TrainConfig, raw)))
    built = _built(raw, {"batch_size": sizes[0], "duration": 1, "optim.warmup": 0})
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


def _raw(config: str | Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain configuration, with what it takes over from other weights.

    Raises:
      UsageError: it goes on from a run, and what is found holds for a start.
    """
    plain = configs.load(config) if isinstance(config, str) else configs.plain(config)
    raw = inherit.resolved(configs.change(plain, changes.items()))
    if raw.get("resume_from"):
        raise UsageError("resume_from goes on in the middle of a schedule; name what to start from with init instead.")
    return raw


def _built(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Setup:
    return setup.build(inherit.with_tokenizer(configs.parse(TrainConfig, configs.change(raw, changes.items()))))


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
    rows = size // jax.process_count()
    batch = sharding.put({k: np.resize(v, (rows, *v.shape[1:])) for k, v in examples.items()}, built.mesh)
    state, frozen, seconds = built.init(), built.step.frozen_inputs(), []
    for _ in range(1 + ROUNDS):
        begun = time.perf_counter()
        state, metrics = program(state, batch, frozen)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begun)
    return size / min(seconds[1:])
