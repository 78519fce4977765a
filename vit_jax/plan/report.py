"""What a plan says of a training step: memory, work, exchanges, predicted time and input rate, and what was assumed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

GIB = 2**30
SHOWN = 16
"""Layers that the table of cycles names; the JSON has all."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      parts: what a step is handed by name, from shapes and shardings: parameters, optimizer, batch and so on.
      compiler: by the compiler's names: ``argument``, ``output``, ``alias`` (outputs in the place of arguments),
        ``temp``, ``generated_code``; empty where it refused the program.
      needed: in all.
      available: what a program may use.
      compiled: whether the compiler took the program.
    """

    parts: Mapping[str, int]
    compiler: Mapping[str, int]
    needed: int
    available: int
    compiled: bool

    @property
    def fits(self) -> bool:
        return self.compiled and self.needed <= self.available


@dataclasses.dataclass(frozen=True)
class Exchange:
    """The collectives of one kind in a step.

    Attributes:
      kind: ``"all-gather"`` for instance.
      count: how many a step does.
      bytes: of the arrays that are gathered, summed or passed on, in all.
      sent: bytes that one device sends for them.
      seconds: that takes at the bandwidth of the links; None where that is not known.
    """

    kind: str
    count: int
    bytes: int
    sent: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Time:
    """Predicted seconds of a step.

    Attributes:
      compute: the compiler's estimated cycles at the clock.
      exchange: bytes sent at the bandwidth of the links.
      hbm: reading the arguments once, writing outputs once, temporaries both, at the bandwidth of HBM: a floor.
      least: were exchanges entirely hidden behind compute.
      most: were none hidden.
    """

    compute: float
    exchange: float
    hbm: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel (Pallas) of a step.

    Attributes:
      name: that of its author, and what it writes: ``"monarch_forward bf16[12608,3072]"``.
      layer: what calls it.
      calls: of a step.
      bundles: of its code: cycles of one pass.
      steps: of its grid, on one core.
      cycles: of all calls by the final schedule, or what their bytes take from and to HBM where that is more; 0 where
        the schedule is not known.
      unknown: loops of its own that do not show how often they turn, and count once.
      reason: why it is not; "" where it is.
    """

    name: str
    layer: str
    calls: int
    bundles: int
    steps: int
    cycles: int
    unknown: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes on devices that need not be here.

    Attributes:
      topology: its name.
      devices: number of them: chips.
      hosts: processes that they belong to.
      mesh: sizes of the axes.
      settings: what may be changed and leaves the result of training as it is, and the batch.
      memory: of one device.
      flops: operations of the model, of one device and step: those that MFU counts.
      program_flops: products in the compiled program, of one device and step; recomputation included.
      exchanges: collectives by kind.
      cycles: layer -> estimated cycles of a step, kernels among them; empty for CPUs.
      kernels: those that a step calls.
      time: None where nothing tells, as for CPUs.
      mfu: model FLOPs utilisation if no exchange is hidden, and if all are; None without ``time``.
      images_per_host: images a second that a host must deliver at most; None without ``time``.
      bytes_per_host: their decoded bytes a second.
      checkpoint: bytes of a checkpoint, all hosts' parts together.
      notes: what was assumed and left out, a sentence each.
    """

    topology: str
    devices: int
    hosts: int
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    memory: Memory
    flops: float
    program_flops: float
    exchanges: tuple[Exchange, ...]
    cycles: Mapping[str, int]
    kernels: tuple[Kernel, ...]
    time: Time | None
    mfu: tuple[float, float] | None
    images_per_host: float | None
    bytes_per_host: float | None
    checkpoint: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.memory.fits

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {"fits": self.fits, **dataclasses.asdict(self)}

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Plan:
        """The plan whose :meth:`summary` that is."""
        found = {field.name: summary[field.name] for field in dataclasses.fields(cls)}
        found["memory"] = Memory(**found["memory"])
        found["time"] = found["time"] and Time(**found["time"])
        found["mfu"] = found["mfu"] and tuple(found["mfu"])
        found["exchanges"] = tuple(Exchange(**e) for e in found["exchanges"])
        found["kernels"] = tuple(Kernel(**k) for k in found["kernels"])
        return cls(**{**found, "notes": tuple(found["notes"])})

    def text(self) -> str:
        """The report."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        mesh = " x ".join(str(n) for n in self.mesh.values())
        names = " x ".join(self.mesh)
        hosts = f"{self.hosts:,} host{'s' * (self.hosts > 1)}"
        yield f"{self.topology}: {self.devices:,} devices of {hosts}, mesh {names} = {mesh}"
        yield "  " + ", ".join(f"{k}={v}" for k, v in self.settings.items())
        yield from self._memory()
        yield ""
        yield f"Work of a device and step: {_si(self.flops)}FLOP of the model"
        if self.memory.compiled:
            yield f"  {_si(self.program_flops)}FLOP in products of the program, recomputation included"
            yield from self._exchanges()
            yield from self._cycles()
        yield from self._time()
        yield f"Checkpoint: {self.checkpoint / GIB:,.2f} GiB, all hosts' parts together"
        yield ""
        yield from self.notes

    def _memory(self) -> Iterator[str]:
        memory = self.memory
        unit, name = (GIB, "GiB") if memory.needed >= GIB else (2**20, "MiB")
        row = functools.partial(_row, unit)
        yield ""
        yield f"Memory of a device, {name}"
        yield from (row(name, size) for name, size in memory.parts.items() if size)
        most = f"of {memory.available / unit:,.2f}"
        if not memory.compiled:
            yield row("in all, where the compiler gave up", memory.needed, f"{most}: does not fit")
            return
        compiler = memory.compiler
        padding = compiler["argument"] - sum(memory.parts.values())
        yield row("these, by the compiler", compiler["argument"], f"{padding / unit:+,.3f} for layouts of the device")
        rest = max(0, compiler["temp"] - memory.parts["parameters"])
        text = f"gradients as large as the parameters, then {rest / unit:,.3f} of activations and work space"
        yield row("temporaries, by the compiler", compiler["temp"], text)
        yield row("program and new outputs", memory.needed - compiler["argument"] - compiler["temp"])
        answer = "fits" if memory.fits else "does not fit"
        yield row("in all", memory.needed, f"{most} ({memory.needed / memory.available:.0%}): {answer}")

    def _exchanges(self) -> Iterator[str]:
        yield ""
        if not self.exchanges:
            yield "Collectives: none"
            return
        yield f"{'Collectives of a step':34s} {'count':>7s} {'arrays, MiB':>12s} {'sent, MiB':>12s} {'ms':>9s}"
        for e in self.exchanges:
            ms = "" if e.seconds is None else f"{e.seconds * 1e3:,.2f}"
            yield f"  {e.kind:32s} {e.count:>7,d} {e.bytes / 2**20:>12,.2f} {e.sent / 2**20:>12,.2f} {ms:>9s}"

    def _cycles(self) -> Iterator[str]:
        total = sum(self.cycles.values())
        if not total:
            return
        yield ""
        yield f"{'Cycles of a step, estimated by the compiler':62s} {total / 1e6:>9,.2f} million"
        rows = list(self.cycles.items())
        for name, count in rows[:SHOWN]:
            yield f"  {name[-60:]:60s} {count / 1e6:>9,.2f} {count / total:>6.1%}"
        if rest := sum(count for _, count in rows[SHOWN:]):
            yield f"  {f'{len(rows) - SHOWN} more':60s} {rest / 1e6:>9,.2f} {rest / total:>6.1%}"
        if self.kernels:
            yield ""
            yield f"{'Kernels among them, by their final schedule':62s} {'million':>9s} {'calls':>6s} bundles x steps"
        for k in self.kernels:
            what = f"{k.cycles / 1e6:>9,.2f} {k.calls:>6,d} {k.bundles:,} x {k.steps:,}"
            yield f"  {k.name[:60]:60s} " + (f"{'?':>9s} {k.calls:>6,d}" if k.reason else what)

    def _time(self) -> Iterator[str]:
        if self.time is None or self.mfu is None:
            return
        t = {k: v * 1e3 for k, v in dataclasses.asdict(self.time).items()}
        yield ""
        yield (
            f"Predicted time of a step: {t['least']:,.1f} ms with every exchange hidden, {t['most']:,.1f} ms with none "
            f"(compute {t['compute']:,.1f}, exchanges {t['exchange']:,.1f}, HBM at least {t['hbm']:,.1f})"
        )
        yield f"MFU: {self.mfu[0]:.1%} to {self.mfu[1]:.1%}"
        rate, size = self.images_per_host or 0.0, self.bytes_per_host or 0.0
        yield f"Input of a host: up to {rate:,.0f} images/s, {size / 1e6:,.0f} MB/s once decoded"


def _row(unit: int, name: str, size: int, text: str = "") -> str:
    return f"  {name:36s} {size / unit:>9,.3f}" + (f"  {text}" if text else "")


def _si(value: float) -> str:
    for unit, factor in {"P": 1e15, "T": 1e12, "G": 1e9}.items():
        if value >= factor:
            return f"{value / factor:,.2f} {unit}"
    return f"{value / 1e6:,.2f} M"
