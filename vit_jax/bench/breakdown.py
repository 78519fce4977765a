"""Where the time of one step goes on a CPU: a profile of the operations that ran, by what they are of the model."""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import sharding
from vit_jax.bench import steps
from vit_jax.types import UserError

Interval = tuple[str, float, float]
"""Operation, beginning and end in nanoseconds."""
PRODUCTS = ("dot", "convolution")
BETWEEN = "between operations"


def profile(kind: steps.Kind, name: str, dtype: str, batch: int, size: int, *, rounds: int) -> list[dict[str, Any]]:
    """Traces single steps.

    An instant at which several operations run, as XLA's threads allow, is shared among them, so that all adds up to
    the time of a step, which is a little longer than without a profiler.

    Args:
      kind: "forward" or "train".
      name: of the model.
      dtype: of the computation.
      batch: images a step.
      size: side of the image, in pixels.
      rounds: steps that are traced.

    Returns:
      A row for each kind of operation, the longest first, and one for the whole step: milliseconds, median and least
      and most over the steps, the share of the step and the number of operations.

    Raises:
      UserError: the model does not classify images, or the device is no CPU.
    """
    if sharding.platform() != "cpu":
        raise UserError("--breakdown reads the profile of a CPU; of others XProf shows that of --config.profile.")
    model = steps.classifier(kind, name, dtype=dtype)
    images, labels = steps.inputs(model, batch, size)
    state = jax.jit(lambda: steps.initial(kind, model, images))()
    program = steps.program(kind, model).lower(state, images, labels).compile()
    run = steps.stepping(kind, program, state, images, labels)
    for _ in range(2):
        jax.block_until_ready(run())
    names = kinds(program.as_text())
    traced = [_traced(run) for _ in range(rounds)]
    taken = [shared([(names.get(op, "the rest"), start, end) for op, start, end in step]) for step in traced]
    counts = collections.Counter(names.get(op, "the rest") for op, *_ in traced[-1])
    whole = [sum(step.values()) for step in taken]
    rows = [_row(what, [step.get(what, 0.0) for step in taken], whole, counts[what]) for what in taken[-1]]
    rows.sort(key=lambda row: -row["ms"])
    return [*rows, _row("the whole step", whole, whole, len(traced[-1]))]


def _row(what: str, taken: Sequence[float], whole: Sequence[float], count: int) -> dict[str, Any]:
    ms, total = np.asarray(taken) / 1e6, np.asarray(whole) / 1e6
    spread = {"ms (least)": float(ms.min()), "ms (most)": float(ms.max())}
    return {
        "kind": what, "ms": float(np.median(ms)), **spread,
        "share": float(np.median(ms / total)), "operations": count,
    }  # fmt: skip


def _traced(run: Any) -> list[Interval]:
    """The operations of one step, from the beginning to the end of each, also of those that run in the background."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    begun: dict[int, Interval] = {}
    ended: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(run())
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        found = jax.profiler.ProfileData.from_file(str(file))
        for event in (event for plane in found.planes for line in plane.lines for event in line.events):
            stats = dict(event.stats)
            if "hlo_op" in stats:
                begun[stats["_p"]] = (stats["hlo_op"], event.start_ns, event.end_ns)
            elif event.name.startswith("end: "):
                ended[stats["_c"]] = event.end_ns
    return [(op, start, max(end, ended.get(key, end))) for key, (op, start, end) in begun.items()]


def shared(intervals: Sequence[Interval]) -> dict[str, float]:
    """Nanoseconds by name, each instant shared among the intervals that hold it; the gaps are ``BETWEEN``."""
    edges = [(start, 1, name) for name, start, _ in intervals] + [(end, -1, name) for name, _, end in intervals]
    edges.sort(key=lambda edge: (edge[0], -edge[1]))  # what takes no time opens before it closes
    taken: dict[str, float] = collections.defaultdict(float)
    open_: collections.Counter[str] = collections.Counter()
    before = edges[0][0]
    for at, change, name in edges:
        total = sum(open_.values())
        for other, count in open_.items():
            taken[other] += (at - before) * count / total
        if not total:
            taken[BETWEEN] += at - before
        before = at
        open_[name] += change
        open_ += collections.Counter()  # drops what is closed
    return dict(taken)


def kinds(text: str) -> Mapping[str, str]:
    """Operation of a compiled program -> its kind, by where in the model it comes from.

    A fusion is a product if one is in it, and else of the kind of most of its operations.
    """
    inside: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    operations = {}
    computation = ""
    for line in text.split("\n"):
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = head[1]
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)
        if found and found[2] not in ("parameter", "constant"):
            path = re.search(r'op_name="([^"]*)"', line)
            calls = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
            operations[found[1]] = entry = (found[2], path[1] if path else "", calls[1] if calls else "")
            inside[computation].append(entry)
    return {name: _kind(entry, inside) for name, entry in operations.items()}


def _kind(entry: tuple[str, str, str], inside: Mapping[str, list[tuple[str, str, str]]]) -> str:
    code, path, calls = entry
    parts = inside.get(calls, [entry])
    if product := next((path for code, path, _ in parts if code in PRODUCTS), None):
        return _named(product, True)
    votes = collections.Counter(_named(path, False) for _, path, _ in parts if path)
    return votes.most_common(1)[0][0] if votes else _named(path, code in PRODUCTS)


def _named(path: str, product: bool) -> str:
    """The kind of what stands at ``jit(train)/jvp(ViT)/encoder/block_0/block_0.branch/norm_mlp/mul``."""
    modules = [part for part in path.split("/")[:-1] if re.fullmatch(r"\w+", part)]
    of_linear = any(part.endswith(".product") for part in path.split("/"))
    if product:
        within = "attention" in modules and not of_linear
        return "products of attention" if within else "products with weights"
    if path.startswith("jit(train)/") and "jvp(" not in path:
        return "optimizer"
    if any(part.startswith("norm") for part in modules):
        return "layer norms"
    if of_linear:
        return "casts, biases and their gradients"
    names = {
        "attention": "softmax and copies of attention", "mlp": "activations", "tokens": "activations",
        "patch": "embedding", "position": "embedding", "head": "head and loss",
    }  # fmt: skip
    if named := next((names[part] for part in modules if part in names), None):
        return named
    if ".branch/" in path:
        return "residual sums"
    return "head and loss" if "jvp()" in path else "the rest" if path else "copies"
