"""Other ways to run the same training on the same devices: which of them fit, and which is fastest.

The batch, and with it the result of training, stays. What varies is how the step is computed: micro-batches
(``accumulate``), what the backward pass recomputes (``remat``), blocks as a loop (``scan``), and the mesh. Few programs
are compiled: one that does not fit is refused within seconds and tells its size, from which follows how many examples a
device holds at a time, as activations are proportional to them; and what cannot be faster than what was found is left
out, with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import AbstractMesh

from vit_jax import sharding
from vit_jax.config import parse
from vit_jax.plan import planning, program, topology
from vit_jax.plan.report import GIB, Plan
from vit_jax.plan.topology import Topology
from vit_jax.train import inherit
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.train.step import check_batch
from vit_jax.types import UsageError, UserError

ROOM = 0.92
"""Share of a device's memory that estimates fill: the compiler packs worse than proportion says."""
STATE = 0.5
"""Share of it that parameters, their gradients and the optimizer may take before they are split further."""
RECOMPUTED = {"none": 0.0, "dots": 0.02, "dots_no_batch": 0.08, "full": 1 / 3}
"""What ``remat`` keeps -> what it computes a second time, as a share of the step: of three passes one, or its part that
is no product."""
PROBES = 3
"""Programs that are compiled, beside those that are refused at once, for one way to recompute and to split."""

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Try:
    """One way to run the step.

    Attributes:
      changes: keys of the configuration with other values.
      plan: what it takes; None where it was not compiled.
      reason: why not, or what came of it.
    """

    changes: Changes
    plan: Plan | None
    reason: str

    @property
    def words(self) -> str:
        """What to add to the command line."""
        return " ".join(f"--config.{key}={value}" for key, value in self.changes.items())


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried, in order; the first is the configuration as it is.

    Attributes:
      tries: all of them.
      nearest: whether the search ended at the first that fits.
    """

    tries: tuple[Try, ...]
    nearest: bool = False

    @property
    def best(self) -> Try | None:
        """The fastest that fits; of CPUs, whose time is not known, the one that needs the least memory."""
        fitting = [(t, t.plan) for t in self.tries if t.plan is not None and t.plan.fits]
        key = lambda pair: pair[1].time.most if pair[1].time else pair[1].memory.needed  # noqa: E731
        return min(fitting, key=key)[0] if fitting else None

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        rows = [
            {"changes": dict(t.changes), "reason": t.reason, "plan": t.plan and t.plan.summary()} for t in self.tries
        ]
        return {"best": None if self.best is None else dict(self.best.changes), "tries": rows}

    def text(self) -> str:
        """A line for every try, and what to take."""
        lines = ["", f"{'Tried':58s} {'GiB':>8s} {'ms a step':>16s}"]
        for t in self.tries:
            name = ", ".join(f"{k.removeprefix('model.')}={v}" for k, v in t.changes.items()) or "as it is"
            size = "" if t.plan is None else f"{t.plan.memory.needed / GIB:,.2f}"
            ms = f"{t.plan.time.least * 1e3:,.0f} to {t.plan.time.most * 1e3:,.0f}" if t.plan and t.plan.time else ""
            lines.append(f"  {name:56s} {size:>8s} {ms:>16s}  {t.reason}".rstrip())
        if self.best is None:
            lines.append("None of them fits: take more devices, a smaller model or smaller images.")
        elif not self.best.changes:
            lines.append("The configuration as it is is the fastest that fits.")
        else:
            what = "The nearest that fits" if self.nearest else "The fastest that fits"
            lines.append(f"{what}: {self.best.words}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Way:
    """How a step is computed, but for the number of micro-batches.

    Attributes:
      mesh: devices along replica, fsdp and tensor.
      remat: what blocks recompute; None leaves it as it is.
      scan: whether blocks are a loop; None leaves it as it is.
    """

    mesh: tuple[int, int, int]
    remat: str | None = None
    scan: bool | None = None


class Searcher:
    """The search for one configuration; see :func:`search`."""

    def __init__(
        self, setup: Setup, devices: Topology, planned: Callable[[Changes], Plan], told: Callable[[Try], None]
    ) -> None:
        self.setup, self.devices, self.planned, self.told = setup, devices, planned, told
        self.stacks = planning.stacks(setup.config.model)
        remats, scans = ({getattr(part, key) for part in self.stacks.values()} for key in ("remat", "scan"))
        self.remat = remats.pop() if len(remats) == 1 else None
        self.scan = scans.pop() if len(scans) == 1 else None
        self.mesh = tuple(setup.mesh.shape.values())
        self.tries: list[Try] = []
        self.per_example: dict[tuple[str | None, bool | None], float] = {}
        self.states: dict[tuple[int, ...], int] = {}

    def run(self, nearest: bool) -> Search:
        """All ways in turn, or until one fits."""
        self.attempt(Way(self.mesh), self.setup.config.accumulate)
        for way in self.ways(nearest):
            best = Search(tuple(self.tries)).best
            if nearest and best is not None:
                break
            if reason := self.hopeless(way, best):
                self.note(self.changes(way, self.setup.config.accumulate), None, reason)
            else:
                self.fit(way)
        return Search(tuple(self.tries), nearest)

    def ways(self, nearest: bool) -> Iterator[Way]:
        """From the smallest change on, or from what is likely to be fast."""
        size, config = len(self.devices.devices), self.setup.config
        splits = [
            (size // n, n, 1) for n in _powers(size) if self.state((size // n, n, 1)) <= STATE * self.devices.memory
        ]
        meshes = [self.mesh, *splits[:1], (1, size, 1)]
        if config.batch_size < size or self.state((1, size, 1)) > ROOM * self.devices.memory:
            meshes += [(1, size // n, n) for n in _powers(min(size, 8))[1:]]
        elif self.stacks:
            meshes.append((1, size // 2, 2) if size > 1 else self.mesh)
        remats = [None, "none", "dots_no_batch", "full"] if self.stacks else [None]
        if nearest:
            remats = [r for r in remats if r != "none"]
        for mesh in dict.fromkeys(meshes):
            for remat in remats:
                if remat is None or remat != self.remat:
                    yield Way(mesh, remat)
        best = Search(tuple(self.tries)).best
        if best is not None and self.scan is not None:
            yield dataclasses.replace(self.way(best), scan=not self.scan)

    def way(self, found: Try) -> Way:
        """That of something tried."""
        mesh = tuple(found.changes.get(f"mesh.{axis}", n) for axis, n in zip(sharding.AXES, self.mesh, strict=True))
        path = next(iter(self.stacks))
        return Way(mesh, found.changes.get(f"{path}.remat"))

    def hopeless(self, way: Way, best: Try | None) -> str:
        """Why ``way`` is not worth a try; "" where it is."""
        try:
            if not self.parts_of(way):
                return "the batch does not divide so"
        except UserError as e:
            return str(e).partition("; ")[0]
        if (state := self.state(way.mesh)) > ROOM * self.devices.memory:
            return f"parameters, gradients and optimizer alone take {state / GIB:,.1f} GiB"
        if best is None or best.plan is None or best.plan.time is None:
            return ""
        time, old = best.plan.time, self.way(best)
        more = RECOMPUTED.get(way.remat or self.remat or "none", 0.0) - RECOMPUTED.get(
            old.remat or self.remat or "none", 0.0
        )
        if more > 0 and time.compute * (1 + more) >= time.most:
            return f"recomputes more than was needed: {time.compute * (1 + more) * 1e3:,.0f} ms or more"
        if way.mesh != old.mesh and more >= 0:
            if way.mesh[2] > 1:
                return "exchanges activations in every block, and what fits without is known"
            if time.exchange <= 0.03 * time.most:
                return f"exchanges are {time.exchange / time.most:.1%} of a step: no other split can gain more"
        return ""

    def fit(self, way: Way) -> None:
        """Tries ``way`` with as few micro-batches as fit."""
        parts, least = self.parts_of(way), 0
        for _ in range(PROBES):
            enough = [n for n in parts if n > least and self.estimate(way, n) <= ROOM * self.devices.memory]
            if not enough:
                need = self.estimate(way, parts[-1]) / GIB
                self.note(
                    self.changes(way, parts[-1]), None, f"about {need:,.1f} GiB at one example of a device at a time"
                )
                return
            plan = self.attempt(way, enough[0])
            if plan is None or plan.fits:
                return
            least = enough[0]

    def attempt(self, way: Way, parts: int) -> Plan | None:
        """The plan of ``way`` in so many micro-batches, noted; None where it cannot be built or was tried."""
        changes = self.changes(way, parts)
        if any(t.changes == changes and t.plan is not None for t in self.tries):
            return None
        try:
            plan = self.planned(changes)
        except UserError as e:
            return self.note(changes, None, str(e))
        work = plan.memory.needed - self.state(way.mesh) - plan.memory.parts["batch"]
        self.per_example[way.remat or self.remat, way.scan] = max(0, work) / self.examples(way, parts)
        return self.note(changes, plan, "" if plan.fits else "does not fit")

    def note(self, changes: Changes, plan: Plan | None, reason: str) -> Plan | None:
        self.tries.append(Try(changes, plan, reason))
        self.told(self.tries[-1])
        return plan

    def changes(self, way: Way, parts: int) -> dict[str, Any]:
        """What of the configuration ``way`` changes."""
        out: dict[str, Any] = {}
        if parts != self.setup.config.accumulate:
            out["accumulate"] = parts
        if way.mesh != self.mesh:
            out |= {f"mesh.{axis}": n for axis, n in zip(sharding.AXES, way.mesh, strict=True)}
        for path, part in self.stacks.items():
            wanted = {"remat": way.remat, "scan": way.scan}
            out |= {f"{path}.{k}": v for k, v in wanted.items() if v is not None and v != getattr(part, k)}
        return out

    def parts_of(self, way: Way) -> list[int]:
        """Numbers of micro-batches that the batch divides into, from the smallest on."""
        c, found = self.setup.config, []
        mesh = AbstractMesh(way.mesh, sharding.AXES)
        group = None if c.optim.sam is None else c.optim.sam.m
        for n in _powers(max(1, c.batch_size // (way.mesh[0] * way.mesh[1]))):
            with contextlib.suppress(UsageError):
                check_batch(c.batch_size, n, group, mesh)
                found.append(n)
        return found

    def examples(self, way: Way, parts: int) -> float:
        """Of a device at a time."""
        return self.setup.config.batch_size / (way.mesh[0] * way.mesh[1] * parts * way.mesh[2])

    def estimate(self, way: Way, parts: int) -> float:
        """Bytes of a device, from what one example took; 0 where nothing is known."""
        remat = way.remat or self.remat
        each = self.per_example.get((remat, way.scan), self.per_example.get((remat, None)))
        batch = sum(x.size * x.dtype.itemsize for x in self.setup.batch_shapes.values()) / (way.mesh[0] * way.mesh[1])
        return 0.0 if each is None else self.state(way.mesh) + batch + each * self.examples(way, parts)

    def state(self, mesh: tuple[int, ...]) -> int:
        """Bytes of a device for a state and its gradients, split over ``mesh``."""
        if mesh not in self.states:
            self.states[mesh] = program.state_bytes(self.setup, mesh)
        return self.states[mesh]


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if most % 2**i == 0]


def search(
    raw: Mapping[str, Any],
    where: str,
    *,
    nearest: bool = False,
    examples: int | None = None,
    classes: int | None = None,
    told: Callable[[Try], None] = lambda _: None,
) -> Search:
    """Tries other ways to run a plain configuration with the same batch, see :mod:`vit_jax.plan.search`.

    Args:
      raw: the configuration.
      where: the topology.
      nearest: end at the first that fits, beginning with the smallest changes.
      examples: of the training data, see :func:`vit_jax.plan.planning.plan`.
      classes: likewise.
      told: called after every try.
    """
    devices = topology.find(where)

    def planned(changes: Changes) -> Plan:
        return planning.plan(raw, where, changes=changes, examples=examples, classes=classes)

    config = program.without_data(parse(TrainConfig, inherit.resolved(raw)), examples, classes)[0]
    return Searcher(program.setup_for(config, devices.devices), devices, planned, told).run(nearest)
