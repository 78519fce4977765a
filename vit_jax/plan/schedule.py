"""Cycles of kernels (Pallas) by the schedule that the TPU's compiler writes of each.

The compiler estimates no cycles for a kernel, but it packs it into bundles, one a cycle. A kernel is compiled alone, in
a process that has libtpu write the bundles; here they are read: which of them are a loop, and how often it turns. What
is not in them is waiting for HBM, so a call takes what its bytes take there where that is more.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.io import cache, jsonfile
from vit_jax.io.installation import for_children
from vit_jax.plan import alone, hlo, report
from vit_jax.plan.topology import ENVIRONMENT, Chip, options
from vit_jax.types import UserError

FOLDER, SUFFIX, KEPT, FORMAT = "schedules", ".json", 10**7, 2
"""Folder of the cache, bytes of it that are kept, and a number that changes with what is kept."""
SECONDS = 600.0
"""After which no more kernels are waited for."""
DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false " \
    "--xla_jf_dump_llo_pass_label_regex=final_bundles"  # fmt: skip
"""What libtpu is told: with no more than the last of its seventy stages a kernel takes a hundredth of the disk."""
DELAY = 4
"""Bundles behind a branch that still run."""
TYPES = {"bf16": "bfloat16", "pred": "bool"} | {
    f"{short}{n}": f"{name}{n}" for short, name in (("f", "float"), ("s", "int"), ("u", "uint")) for n in (4, 8, 16, 32)
}
BUNDLE = re.compile(r"^ *(?:0x)?([0-9a-f]+) +(?:[A-Z]+)? *: +>* *\{", re.MULTILINE)
BRANCH = re.compile(r"sbr\.rel \((!?)(%p\w+)\) target = \$region(\d+)")
GUARD = r"(?:\(!?%p\w+\), )?"
CONDITION = rf"scmp\.(?:eq|ne)\.s32\.totalorder {GUARD}%s\w+, \d+$"
"""Of a branch over what runs in some steps only; those of copies to and fro are combined of several."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the compiler made of a kernel.

    Attributes:
      bundles: of its code.
      steps: of the grid, on one core.
      cycles: of a call: every bundle as often as it runs, what is conditional always.
      unknown: loops of its own that do not show how often they turn, and count once.
      conditional: of the cycles, those that hang on an index of the grid (``pl.when(pl.program_id(0) == 0)``).
      turn: cycles more if each of the unknown loops turns once more.
    """

    bundles: int
    steps: int
    cycles: int
    unknown: int
    conditional: int = 0
    turn: int = 0


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Bundles from ``start`` to before ``end``, and how often they run; None where the text does not say it."""

    start: int
    end: int
    turns: int | None
    grid: bool


def parse(text: str) -> Schedule:
    """Reads the bundles of a kernel, as libtpu writes them.

    Raises:
      ValueError: there are none.
    """
    places = [found.start() for found in BUNDLE.finditer(text)]
    if not places:
        raise ValueError("the compiler wrote a schedule of another form")
    bundles = [text[start:end] for start, end in zip(places, [*places[1:], len(text)], strict=True)]
    branches = _branches(bundles)
    loops = _loops(text, bundles, branches)
    times = [math.prod(o.turns or 1 for o in loops if o.start <= i < o.end) for i in range(len(bundles))]
    steps = math.prod(o.turns or 1 for o in loops if o.grid)
    skipped = {j for i, target, _, p in branches if re.match(CONDITION, _origin(text, p)) for j in range(i + 1, target)}
    again = {i for o in loops if o.turns is None for i in range(o.start, o.end)}
    conditional, turn = (sum(times[i] for i in part) for part in (skipped, again))
    return Schedule(len(bundles), steps, sum(times), sum(o.turns is None for o in loops), conditional, turn)


def _branches(bundles: Sequence[str]) -> list[tuple[int, int, str, str]]:
    """Where branches are, the first bundle of their target, whether they are negated ("!" or ""), and on what."""
    regions = {
        region: i for i, b in enumerate(bundles) for region in re.findall(r"Start(?:/End empty)? region (\d+)", b)
    }
    found = [(i, *branch) for i, bundle in enumerate(bundles) for branch in BRANCH.findall(bundle)]
    return [(i, regions[region], negated, p) for i, negated, p, region in found if region in regions]


def _loops(text: str, bundles: Sequence[str], branches: Sequence[tuple[int, int, str, str]]) -> list[_Loop]:
    """A loop is what a branch goes back over, to where the region of its target begins."""
    found = []
    for i, start, negated, predicate in branches:
        if start <= i:
            turns, stages = (
                _turns(text, predicate) if negated else None,
                set(re.findall(r"stage = (\d)", bundles[start])),
            )
            if turns is not None and "1" in stages:  # one step is fetched, one computed, one written back at a time
                turns = max(1, turns - 2)
            found.append(_Loop(start, min(i + 1 + DELAY, len(bundles)), turns, bool(stages)))
    return found


def _turns(text: str, predicate: str) -> int | None:
    """Turns of a loop that ends when ``predicate`` is true: a counter that starts at a number has reached another."""
    end = re.fullmatch(rf"scmp\.ge\.s32\.totalorder {GUARD}(%s\w+), (\d+)", _origin(text, predicate))
    step = end and re.fullmatch(rf"sadd\.s32 {GUARD}(\d+), (%s\w+)", _origin(text, end[1]))
    first = step and re.fullmatch(r"sphi (%s\w+), %s\w+", _origin(text, step[2]))
    start = first and re.fullmatch(rf"smov {GUARD}(\d+)", _origin(text, first[1]))
    return max(1, -(-(int(end[2]) - int(start[1])) // int(step[1]))) if end and step and start else None


def _origin(text: str, register: str) -> str:
    """The instruction of which a register has its value, through copies and memory for what registers do not hold."""
    found = re.search(rf"{register} = ([^;/}}]+)", text)
    value = found[1].strip() if found else ""
    if copied := re.fullmatch(rf"smov {GUARD}(%s\w+)", value):
        return _origin(text, copied[1])
    if spilled := re.fullmatch(r"sld \[smem:\[#(\w+_spill)\]\]", value):
        stored = re.search(rf"sst \[smem:\[#{spilled[1]}\]\] (%s\w+)", text)
        return _origin(text, stored[1]) if stored else ""
    return value


def kernels(program: hlo.Program, chip: Chip, layer: Callable[[str], str] = hlo.layer) -> list[report.Kernel]:
    """The kernels that a step calls, the one that takes most first; ``layer`` names what calls them, from its path."""
    calls = hlo.kernels(program)
    known, table = of(list({kernel: None for kernel, *_ in calls}), chip), dict[report.Kernel, int]()
    for (kernel, path, moved), times in calls.items():
        found = known[kernel]
        s, reason = (found, "") if isinstance(found, Schedule) else (Schedule(0, 0, 0, 0), found)
        name = " ".join([kernel.name, *(f"{kind}{list(dims)}".replace(" ", "") for kind, dims in kernel.results)])
        cycles = 0 if reason else max(s.cycles, round(moved / chip.bandwidth * chip.clock))
        row = report.Kernel(name, layer(path), 1, s.bundles, s.steps, cycles, s.unknown, reason)
        table[row] = table.get(row, 0) + times
    rows = [dataclasses.replace(row, calls=n, cycles=n * row.cycles) for row, n in table.items()]
    return sorted(rows, key=lambda row: -row.cycles)


def added(cycles: Mapping[str, int], kernels: Sequence[report.Kernel]) -> dict[str, int]:
    """Layer -> cycles, largest first, with those of kernels."""
    table = collections.Counter(cycles)
    for kernel in kernels:
        table[kernel.layer] += kernel.cycles
    return dict(table.most_common())


def notes(kernels: Sequence[report.Kernel]) -> list[str]:
    """What is assumed of the cycles of kernels, a sentence each."""
    known, left = [k for k in kernels if not k.reason], [k for k in kernels if k.reason]
    found = []
    if known:
        found.append(
            "Kernels count by the compiler's final schedule: a cycle for every bundle, as often as its loop and the "
            "grid of a core run it, or what HBM takes for the bytes of a call where that is more. What is conditional "
            "counts as if always taken; a step of the grid or a call takes nothing beside its bundles."
        )
    for name, n in {k.name: k.unknown for k in known if k.unknown}.items():
        found.append(f"Of {name} {n} loops do not show how often they turn and count once; a step takes longer.")
    if left:
        calls = ", ".join(f"{k.name} ({k.calls:,}; {k.reason})" for k in left)
        found.append(f"Not in the cycles, as their schedule is not known: {calls}; a step takes longer.")
    return found


def of(kernels: Sequence[hlo.Kernel], chip: Chip) -> dict[hlo.Kernel, Schedule | str]:
    """The schedules of kernels on ``chip``, or why there is none; they are kept, so that each is compiled once."""
    places = {kernel: _place(kernel, chip) for kernel in kernels}
    found: dict[hlo.Kernel, Schedule | str] = {}
    for kernel, place in places.items():
        with contextlib.suppress(UserError, TypeError):
            found[kernel] = Schedule(**jsonfile.read(place))
            cache.used(place)
    missing = [kernel for kernel in places if kernel not in found]
    for kernel, answer in zip(missing, _compiled(missing, chip), strict=True):
        found[kernel] = answer
        if isinstance(answer, Schedule):
            _keep(places[kernel], answer)
    return found


def _place(kernel: hlo.Kernel, chip: Chip) -> pathlib.Path:
    words = json.dumps([FORMAT, chip.name, _arguments(kernel), importlib.metadata.version("libtpu")])
    return cache.folder(FOLDER) / (hashlib.sha256(words.encode()).hexdigest()[:32] + SUFFIX)


def _keep(place: pathlib.Path, schedule: Schedule) -> None:
    with contextlib.suppress(OSError):  # it will be found out anew the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        jsonfile.write(place, dataclasses.asdict(schedule))
        cache.trim(place.parent, f"*{SUFFIX}", KEPT)


def _compiled(kernels: Sequence[hlo.Kernel], chip: Chip) -> list[Schedule | str]:
    """An answer for every kernel, by :mod:`vit_jax.plan.alone`."""
    if not kernels:
        return []
    shape = chip.topologies[0]
    question = {
        "topology": f"{chip.name}:{shape}",
        "options": options(shape),
        "kernels": list(map(_arguments, kernels)),
    }
    with tempfile.TemporaryDirectory(prefix="vit_jax") as folder:
        lines, reason = _run(folder, json.dumps(question).encode())
    answers = [_read(line) for line in lines[: len(kernels)]]
    return answers + [reason] * (len(kernels) - len(answers))


def _run(folder: str, question: bytes) -> tuple[list[bytes], str]:
    """The lines that the process answers, and why there are no more."""
    added = (
        ENVIRONMENT
        | for_children()
        | {
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {DUMP.format(folder)}".strip(),
        }
    )
    command = [sys.executable, "-P", str(alone.__file__), folder]
    try:
        done = subprocess.run(command, input=question, capture_output=True, timeout=SECONDS, env=os.environ | added)
        lines, reason = done.stdout, f"the compiler's process ended with exit status {done.returncode}"
    except subprocess.TimeoutExpired as e:
        lines, reason = e.stdout or b"", f"not compiled within {SECONDS:,.0f} s"
    return lines.split(b"\n")[:-1], reason


def _read(line: bytes) -> Schedule | str:
    try:
        answer: Mapping[str, str] = jsonfile.loads(line)
        return parse(answer["schedule"]) if "schedule" in answer else answer["error"]
    except ValueError as e:
        return str(e)


def _arguments(kernel: hlo.Kernel) -> dict[str, Any]:
    return {"operands": _named(kernel.operands), "results": _named(kernel.results), "config": kernel.config}


def _named(shapes: Sequence[hlo.Shape]) -> list[tuple[str, tuple[int, ...]]]:
    return [(TYPES.get(kind, kind), shape) for kind, shape in shapes]
