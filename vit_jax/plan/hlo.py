"""What the text of a compiled program tells: collectives, products and the compiler's cycles, loops multiplied.

XLA's own ``cost_analysis`` counts the body of a loop once, whatever its number of turns. Here every operation counts
as often as it runs: :func:`executed` goes through the program from its entry and multiplies by the turns of the loops
around it. A loop whose number of turns the text does not show counts once; :func:`unknown_loops` tells how many do.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Bits of an element of the types whose name does not say it."""
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
INSIDE = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
STEPS = ("fusion", "call", "async-start", "conditional", "custom-call")
"""Operations that run other computations once. What others name, as the sum of an ``all-reduce``, is a part of them."""

CONTROL = ("while", "body", "cond", "closed_call", "shard_map", "rematted_computation", "checkpoint")
"""Parts of a path that are no layer."""

Shape = tuple[str, tuple[int, ...]]
"""Type of an element, and the dimensions."""


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction.

    Attributes:
      name: of its result.
      kind: what it does: ``"fusion"``, ``"all-reduce"``.
      shapes: of its results.
      operands: names of its operands.
      literal: what stands between its parentheses.
      attributes: what follows them.
      near: of every result, whether it is kept in a memory of the chip's own (VMEM), not in HBM.
    """

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    near: tuple[bool, ...]

    @functools.cached_property
    def cycles(self) -> int:
        """The compiler's estimate for one run, 0 where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @functools.cached_property
    def path(self) -> str:
        """Where in the traced program it comes from: ``jit(step)/jvp(ViT)/encoder/block_0/mlp/dot_general``."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's computations by name, each its instructions by name, in order; and the name of the first to run."""

    computations: Mapping[str, Mapping[str, Op]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction where it runs.

    Attributes:
      op: the instruction.
      computation: the name of its own computation.
      body: the name of the innermost computation around it that is no fusion.
      times: how often a step runs it.
    """

    op: Op
    computation: str
    body: str
    times: int

    @property
    def fused(self) -> bool:
        return self.computation != self.body


def parse(text: str) -> Program:
    """Reads what ``compiled.as_text()`` returns."""
    computations: dict[str, dict[str, Op]] = {}
    entry, current = "", None
    for line in text.split("\n"):
        if line.endswith("{") and not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) ", line)
            if head and "->" in line:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (op := _instruction(line.strip())) is not None:
            current[op.name] = op
    return Program(computations, entry)


def _instruction(line: str) -> Op | None:
    name, found, rest = line.removeprefix("ROOT ").partition(" = ")
    if not found:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    kind, _, _ = rest.partition("(")
    close = _closing(rest, len(kind))
    inner = rest[len(kind) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    near = tuple("S(" in layout for layout in re.findall(r"\w+\[[^\]]*\]((?:\{[^}]*\})?)", shape))
    return Op(name.lstrip("%"), kind.strip(), _shapes(shape), operands, inner, rest[close + 1 :], near)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        (kind, tuple(int(n) for n in re.findall(r"\d+", dims))) for kind, dims in re.findall(r"(\w+)\[([^\]]*)\]", text)
    )


def size(shapes: Sequence[Shape]) -> int:
    """Bytes of arrays, without the compiler's padding."""
    return sum(math.prod(dims) * (BITS[kind] if kind in BITS else _bits(kind)) for kind, dims in shapes) // 8


def _bits(kind: str) -> int:
    found = re.search(r"[a-z](\d+)", kind)
    bits = int(found[1]) if found else 0
    return 2 * bits if kind.startswith("c") else bits


def executed(program: Program) -> Iterator[Run]:
    """Every instruction of a step where it runs; of a ``conditional`` all branches, as if each were taken."""
    yield from _executed(program, program.entry, program.entry, 1)


def _executed(program: Program, name: str, body: str, times: int) -> Iterator[Run]:
    for op in program.computations.get(name, {}).values():
        yield Run(op, name, body, times)
        if op.kind == "while":
            turns = loop_turns(program, name, op) or 1
            inner = re.search(r"body=%?([\w.\-]+)", op.attributes)
            assert inner, op.name
            yield from _executed(program, inner[1], inner[1], times * turns)
        elif op.kind in STEPS:
            for other in _called(op):
                yield from _executed(program, other, body if op.kind == "fusion" else other, times)


def _called(op: Op) -> list[str]:
    listed = BRANCHES.search(op.attributes)
    return INSIDE.findall(op.attributes) + ([] if listed is None else re.findall(r"[\w.\-]+", listed[1]))


def loop_turns(program: Program, computation: str, op: Op) -> int | None:
    """How often a ``while`` of ``computation`` runs its body; None where the text does not say it.

    It is said outright, or the condition compares a counter that starts at a constant with another constant.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes):
        return int(known[1])
    found = re.search(r"condition=%?([\w.\-]+)", op.attributes)
    condition = program.computations.get(found[1], {}) if found else {}
    outer = program.computations[computation]
    start: Sequence[str] = outer[op.operands[0]].operands if op.operands[0] in outer else ()
    compare = next((o for o in condition.values() if o.kind == "compare"), None)
    if compare is None or "direction=LT" not in compare.attributes:
        return None
    ends = [_constant(condition, name, start, outer) for name in compare.operands]
    if len(ends) != 2 or None in ends:
        return None
    return max(0, int(ends[1] or 0) - int(ends[0] or 0))


def _constant(here: Mapping[str, Op], name: str, start: Sequence[str], outer: Mapping[str, Op]) -> int | None:
    """The value at the beginning of a loop of what its condition calls ``name``; None where it is none of the text."""
    op = here.get(name)
    if op is None:
        return None
    if op.kind == "constant":
        return int(op.literal) if re.fullmatch(r"-?\d+", op.literal) else None
    if op.kind in ("copy", "bitcast", "convert") and op.operands:
        return _constant(here, op.operands[0], start, outer)
    index = re.search(r"index=(\d+)", op.attributes)
    if op.kind == "get-tuple-element" and index and here[op.operands[0]].kind == "parameter":
        place = int(index[1])
        return _constant(outer, start[place], (), {}) if place < len(start) else None
    return None


def unknown_loops(program: Program) -> int:
    """Loops that are counted once because nothing tells how often they run."""
    return sum(r.op.kind == "while" and loop_turns(program, r.computation, r.op) is None for r in executed(program))


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: ``"all-reduce"``, ``"all-gather"`` and so on; ``"reduce-scatter"`` is a sum of which each keeps a part.
      times: how often a step does it.
      bytes: of the whole array of one exchange: what is gathered, summed, permuted.
      group: places in the mesh of the devices of one of the groups that exchange; () are all.
      path: where in the program it comes from.
    """

    kind: str
    times: int
    bytes: int
    group: tuple[int, ...]
    path: str

    def sent(self, devices: int) -> float:
        """Bytes that a device sends in one exchange, by an algorithm that sends the fewest (a ring)."""
        n = len(self.group) or devices
        if self.kind.startswith("collective"):
            return float(self.bytes)
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives(program: Program) -> list[Collective]:
    """The exchanges of a step.

    The TPU compiler cuts an exchange into pieces that go on under several other operations: pieces have one channel and
    are one exchange.
    """
    found: dict[tuple[str, str], Collective] = {}
    for run in executed(program):
        op, kind = run.op, run.op.kind.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        shapes = op.shapes
        if op.kind in ("all-gather-start", "collective-permute-start"):  # what goes in, what comes out, and counters
            arrays = [s for s in shapes if s != ("u32", ())]
            shapes = tuple(arrays[len(arrays) // 2 :])
        group, total = _group(op.attributes), size(shapes)
        if kind == "all-reduce" and run.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            total *= max(1, len(group))
        channel = re.search(r"channel_id=(\d+)", op.attributes)
        key = run.body, channel[1] if channel else op.name
        found[key] = Collective(kind, run.times, total, group, op.path)
    return list(found.values())


def _group(attributes: str) -> tuple[int, ...]:
    """Members of the first of the groups that an instruction names, in one of XLA's three notations."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return tuple(sorted({int(n) for n in re.findall(r"\d+", pairs[1])}))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(n) for n in listed[1].split(",") if n)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(dims))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        return tuple(ids.reshape(ids.shape[0], -1)[0].tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\)+)? ?\{([^}]*)\}", attributes):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        chosen = re.findall(r"'([^']*)'", mesh[2])
        return tuple(ids[tuple(slice(None) if name in chosen else 0 for name in sizes)].flatten().tolist())
    return ()


def matrix_flops(program: Program) -> float:
    """Operations (2 per multiply-add) of the products and convolutions of a step on one device."""
    return sum(run.times * flops(program.computations[run.computation], run.op) for run in executed(program))


def flops(around: Mapping[str, Op], op: Op) -> float:
    """Operations of a product or convolution in its computation; 0 of anything else."""
    if op.kind not in ("dot", "convolution"):
        return 0.0
    count = _dot if op.kind == "dot" else _convolution
    return count(op, [around[name].shapes[0][1] for name in op.operands[:2]])


def _dot(op: Op, operands: list[tuple[int, ...]]) -> float:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)
    summed = [operands[0][int(i)] for i in found[1].split(",") if i] if found else []
    return 2.0 * math.prod(op.shapes[0][1]) * math.prod(summed)


def _convolution(op: Op, operands: list[tuple[int, ...]]) -> float:
    """As XLA counts: pairs of a place in the output and one in the kernel that meet an element of the input."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    assert labels, op.attributes
    left, kernel, out = (dict(zip(text, range(len(text)), strict=True)) for text in labels.groups())
    text = re.search(r"window=\{([^}]*)\}", op.attributes)
    window = dict(part.split("=") for part in text[1].split()) if text and text[1] else {}

    def of(key: str, i: int, default: str) -> str:
        return window[key].split("x")[i] if key in window else default

    total = 2.0 * op.shapes[0][1][out["b"]] * op.shapes[0][1][out["f"]] * operands[1][kernel["i"]]
    if groups := re.search(r"batch_group_count=(\d+)", op.attributes):
        total /= int(groups[1])
    for i in range(len(left) - 2):
        stride, spread, dilation = (int(of(key, i, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(of("pad", i, "0_0").split("_")[0])
        n, k, m = operands[0][left[str(i)]], operands[1][kernel[str(i)]], op.shapes[0][1][out[str(i)]]
        places = np.arange(m)[:, None] * stride + np.arange(k)[None, :] * dilation - before
        total *= int(np.sum((places >= 0) & (places <= (n - 1) * spread) & (places % spread == 0)))
    return total


def cycles(program: Program) -> dict[str, int]:
    """Layer -> the compiler's estimated cycles of a step on one device, largest first; blocks are added up."""
    table: collections.Counter[str] = collections.Counter()
    for run in executed(program):
        if not run.fused and run.op.cycles:
            table[layer(run.op.path)] += run.times * run.op.cycles
    return dict(table.most_common())


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of a kernel (Pallas), of which the compiler estimates no cycles.

    Attributes:
      name: that the kernel's author gave it.
      operands: types and shapes of what it reads, on one device.
      results: of what it writes.
      config: JSON of its code and of what it asks of the compiler.
    """

    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    config: str


def kernels(program: Program) -> dict[tuple[Kernel, str, int], int]:
    """Kernel, the path of its call in the traced program, bytes from and to HBM of a call -> calls of a step."""
    table: collections.Counter[tuple[Kernel, str, int]] = collections.Counter()
    for run in executed(program):
        if 'custom_call_target="tpu_custom_call"' in run.op.attributes:
            around = program.computations[run.computation]
            moved = far(run.op) + sum(far(around[name]) for name in run.op.operands)
            table[_kernel(around, run.op), run.op.path, moved] += run.times
    return dict(table.most_common())


def far(op: Op) -> int:
    """Bytes of those results that lie in HBM."""
    return sum(size([shape]) for shape, close in zip(op.shapes, op.near, strict=True) if not close)


def _kernel(around: Mapping[str, Op], op: Op) -> Kernel:
    _, _, text = op.attributes.partition("backend_config=")
    found = json.JSONDecoder().raw_decode(text)[0] if text else {}
    config = {key: found[key] for key in ("custom_call_config", "scoped_memory_configs") if key in found}
    operands = tuple(around[name].shapes[0] for name in op.operands)
    said = re.search(r"(\w+)\W*/pallas_call$", op.path)
    name = said[1] if said else re.sub(r"\.\d+$", "", op.name)
    return Kernel(name, operands, op.shapes, json.dumps(config))


def layer(path: str) -> str:
    """What an instruction belongs to, in words: ``"backward encoder/block/mlp/mlp_in"``."""
    parts = path.split("/")
    if not any("jvp(" in p or "." in p for p in parts):  # neither differentiated nor a method of a module
        return "optimizer, augmentation and the rest"
    way = "backward " if any(p.startswith("transpose(") for p in parts) else "forward "
    if {"rematted_computation", "checkpoint"} & set(parts):
        way = "recomputed " if "rematted_computation" in parts else way
    return way + (module(path) or "loss")


def module(path: str) -> str:
    """The names of modules around an instruction, those of blocks without their number; "" where there are none."""
    parts = path.split("/")
    end = -2 if parts[-1] == "pallas_call" else -1  # before it stands the kernel's name
    names = [p for p in parts[:end] if re.fullmatch(r"\w+", p) and p not in CONTROL]
    return "/".join(re.sub(r"^block(s|_\d+)$", "block", p) for p in names)
