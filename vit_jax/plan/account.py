"""What the operations of a program cost by the compiler's account, and the least that they could: by layer and kind."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

from vit_jax.plan import hlo, report
from vit_jax.plan.hlo import Op, Program, Run
from vit_jax.plan.topology import Chip

KINDS = ("product", "kernel", "softmax", "norm", "copy", "other")
"""Matrix products with what is fused to them, Pallas kernels, what attention does between its products, norms, arrays
that are moved, laid out anew or cast and not computed with, and the rest."""
MOVES = {
    "parameter", "constant", "bitcast", "copy", "transpose", "reshape", "slice", "concatenate", "pad", "broadcast",
    "dynamic-slice", "dynamic-update-slice", "convert", "get-tuple-element", "tuple", "iota", "reverse", "gather",
    "bitcast-convert", "copy-start", "slice-start",
}  # fmt: skip
NOTHING = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "call", "conditional", "copy-done",
    "slice-done", "async-start", "async-update", "async-done",
}  # fmt: skip
"""Operations that read and write nothing themselves."""
AHEAD = "moved ahead, beside the work"
"""The layer of what is moved from or to HBM while the cores work, and of what else the compiler gives no cycles."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The operations of one kind in one layer, blocks added up.

    Attributes:
      layer: names of modules, ``"backward encoder/block/mlp/mlp_in"``.
      kind: one of :data:`KINDS`.
      cycles: the compiler's estimate, a kernel's by its schedule and its bytes.
      flops: of matrix products, 2 a multiply-add; those inside of kernels are not known.
      bytes: read from HBM and written to it.
      floor: cycles of the products at the peak of the matrix units, or of the bytes at the bandwidth of HBM, whichever
        is more.
      count: operations.
    """

    layer: str
    kind: str
    cycles: int
    flops: float
    bytes: int
    floor: int
    count: int

    @property
    def above(self) -> int:
        """Cycles above the floor."""
        return self.cycles - self.floor


def entries(program: Program, kernels: Sequence[report.Kernel], chip: Chip) -> list[Entry]:
    """What a program does, the entry of most cycles first.

    Args:
      program: of one device.
      kernels: its own, by :func:`vit_jax.plan.schedule.kernels`.
      chip: the device.
    """
    table: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0] * 4)
    for run, inside in operations(program):
        if run.op.kind in NOTHING:
            continue
        flops = sum(hlo.flops(program.computations[r.computation], r.op) for r in (run, *inside))
        place = layer(run.op.path) if run.op.cycles or run.op.kind == "custom-call" else AHEAD
        row = table[place, kind(run, inside, flops)]
        for i, value in enumerate((run.op.cycles, flops, traffic(program, run, inside), 1)):
            row[i] += run.times * value
    for kernel in kernels:
        table[kernel.layer, "kernel"][0] += kernel.cycles
    rows = [_entry(chip, key, *row) for key, row in table.items()]
    return sorted((e for e in rows if e.cycles or e.floor), key=lambda e: -e.cycles)


def _entry(chip: Chip, key: tuple[str, str], cycles: float, flops: float, size: float, count: float) -> Entry:
    floor = max(flops / chip.per_cycle, size / chip.bandwidth * chip.clock)
    return Entry(*key, int(cycles), flops, int(size), int(floor), int(count))


def operations(program: Program) -> Iterator[tuple[Run, list[Run]]]:
    """Every operation of a step that is not fused, with those that are fused in it."""
    around: Run | None = None
    inside: list[Run] = []
    for run in hlo.executed(program):
        if run.fused:
            inside.append(run)
            continue
        if around is not None:
            yield around, inside
        around, inside = run, []
    if around is not None:
        yield around, inside


def layer(path: str) -> str:
    """Where an operation belongs, numbers and the class of the model left out; "the rest" where that is not said."""
    names = [re.sub(r"_\d+$", "", name) for name in hlo.module(path).split("/")]
    names = names[1:] if names[0][:1].isupper() else names
    way = "backward " if "transpose(" in path else ""
    return way + ("/".join(names) or "the rest")


def kind(run: Run, inside: Sequence[Run], flops: float) -> str:
    """One of :data:`KINDS`."""
    names = hlo.module(run.op.path).split("/")
    if 'custom_call_target="tpu_custom_call"' in run.op.attributes:
        return "kernel"
    if flops:
        return "product"
    if {r.op.kind for r in inside or (run,)} <= MOVES:
        return "copy"
    if any(name.split("_")[0] == "norm" for name in names):
        return "norm"
    return "softmax" if re.fullmatch(r"attention(_\d+)?|softmax", names[-1]) else "other"


def traffic(program: Program, run: Run, inside: Sequence[Run]) -> int:
    """Bytes that an operation reads from HBM and writes there; of what it only takes a slice of, the slice."""
    around, op = program.computations[run.computation], run.op
    if op.kind in ("copy-start", "slice-start"):  # both ends, the whole or its slice, and a counter
        return min(hlo.size([shape]) for shape in op.shapes[:2]) * op.near[:2].count(False)
    body = {r.op.name: r.op for r in inside if r.computation == inside[0].computation} or {op.name: op}
    updates = [o for o in body.values() if o.kind == "dynamic-update-slice"]
    if updates:
        written = sum(hlo.size(body[o.operands[1]].shapes) for o in updates if o.operands[1] in body)
    else:
        written = hlo.far(op)
    return written + sum(_read(around.get(name), i, body, op) for i, name in enumerate(op.operands))


def _read(source: Op | None, place: int, body: Mapping[str, Op], op: Op) -> int:
    if source is None or all(source.near):
        return 0
    names = {o.name for o in body.values() if o.kind == "parameter" and o.literal == str(place)}
    users = [o for o in body.values() if names & set(o.operands)] if op.kind == "fusion" else [op]
    if users and all(o.kind in ("dynamic-slice", "slice", "gather") for o in users):
        return sum(hlo.size(o.shapes) for o in users)
    if users and all(o.kind == "dynamic-update-slice" and o.operands[0] in names | {source.name} for o in users):
        return 0
    return hlo.far(source)


def copies(program: Program, sizes: Container[int], inputs: str) -> int:
    """How often the cores copy, lay out anew or cast an activation in a step, and do nothing else with it.

    Args:
      program: of one device.
      sizes: elements of the parameters; what has as many, as a gradient, is no activation.
      inputs: the beginning of the names of the arguments on which activations depend.
    """
    found = _dependent(program, inputs)
    return sum(
        run.times
        for run, inside in operations(program)
        if run.op.cycles  # what is moved beside the work has none
        and (run.computation, run.op.name) in found
        and kind(run, inside, 0.0) == "copy"
        and not any(r.op.kind in ("dot", "convolution") for r in inside)
        and max(math.prod(dims) for _, dims in run.op.shapes) not in sizes
    )


Visit = Callable[[str, Sequence[frozenset[int]]], frozenset[int]]


def _dependent(program: Program, inputs: str) -> set[tuple[str, str]]:
    """Operations, each with its computation, that depend on arguments whose names begin so."""
    found: set[tuple[str, str]] = set()

    def visit(name: str, given: Sequence[frozenset[int]]) -> frozenset[int]:
        """Follows a computation whose arguments have these dependent elements (0 of an array); those of its result."""
        held: dict[str, frozenset[int]] = {}
        for op in program.computations[name].values():
            taken = [held.get(o, frozenset[int]()) for o in op.operands]
            held[op.name] = value = _elements(op, taken, given, inputs if name == program.entry else None, visit)
            if value:
                found.add((name, op.name))
        return held[next(reversed(held))]

    visit(program.entry, [])
    return found


def _elements(
    op: Op, taken: Sequence[frozenset[int]], given: Sequence[frozenset[int]], inputs: str | None, visit: Visit
) -> frozenset[int]:
    if op.kind == "parameter":
        if inputs is None:
            return given[int(op.literal)]
        return frozenset(range(len(op.shapes))) if op.path.startswith(inputs) else frozenset()
    if op.kind == "tuple":
        return frozenset(i for i, value in enumerate(taken) if value)
    if op.kind == "get-tuple-element":
        index = re.search(r"index=(\d+)", op.attributes)
        return frozenset({0}) if index and int(index[1]) in taken[0] else frozenset()
    if op.kind == "while":
        body = re.search(r"body=%?([\w.\-]+)", op.attributes)
        state = taken[0]
        while body and not (after := visit(body[1], [state])) <= state:
            state |= after
        return state
    return frozenset(range(len(op.shapes))) if any(taken) else frozenset()
