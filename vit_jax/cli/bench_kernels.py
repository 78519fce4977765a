"""``vit_jax bench kernels``: every implementation of a structured product against the dense product."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Annotated, Any

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest error allowed before anything is timed, as a share of the largest true value."""


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of rows and implementation.

    What is to be timed is compared first: values with the dense product's, with ``--backward`` also the gradients of x
    and of every parameter that is no integer.

    Raises:
      UserError: an implementation is wrong; a name or a size is.
    """
    from vit_jax import config, plots
    from vit_jax.kernels.cases import CASES
    from vit_jax.types import UsageError

    make = config.parse(Annotated[Any, config.Choice(CASES)], args.op, "--op")
    try:
        sizes = [int(n) for n in args.rows.split(",")]
    except ValueError:
        raise UsageError(f"--rows {args.rows!r} is no list of numbers; write 197,1576 for instance.") from None
    rows = [r for n in sizes for r in _measure(make(n, args.inputs, args.outputs, args.dtype), args)]
    if args.plot:
        title = f"{args.op}, {args.inputs} to {args.outputs}, {args.dtype}"
        plots.crossover(rows, title, args.plot)
    return rows


def _measure(case: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    import jax

    from vit_jax import benchmark
    from vit_jax.kernels.products import matmul

    weight, value = case.weight, case.value()
    g = jax.random.normal(jax.random.key(1), value.shape, case.x.dtype) if args.backward else None
    want = (value,) if g is None else (value, *case.gradients(g))
    candidates, errors = {}, {}
    for name in case.here():
        candidates[name] = _program(functools.partial(case.run, name), g, case.x, *case.parameters)
        errors[name] = _error(name, candidates[name](), want, TOLERANCE[args.dtype])
    times = benchmark.alternate({"a dense weight": _program(matmul, g, case.x, weight)} | candidates, args.rounds)
    passes = 3 if args.backward else 1
    out = []
    for name, error in errors.items():
        ratio, low, high = times[name].over(times["a dense weight"])
        out.append({
            "implementation": name, "rows": int(case.x.shape[0]), "backward": args.backward, "error": error,
            "seconds": times[name].median, "dense seconds": times["a dense weight"].median,
            "times dense (median)": ratio, "times dense (10th percentile)": low, "times dense (90th percentile)": high,
            "GFLOP": passes * case.flops / 1e9, "MB": passes * case.bytes / 1e6,
            "GFLOP/s": passes * case.flops / times[name].median / 1e9,
            "GB/s": passes * case.bytes / times[name].median / 1e9,
        })  # fmt: skip
    return out


def _program(product: Any, g: Any, *inputs: Any) -> Callable[[], tuple[Any, ...]]:
    """What is timed: ``(product(*inputs),)``, and with a cotangent ``g`` the gradients of all inputs behind it."""
    import jax

    def forward(*inputs: Any) -> tuple[Any, ...]:
        return (product(*inputs),)

    def both(g: Any, *inputs: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(product, *inputs)
        return y, *pull(g)

    compiled, arguments = (jax.jit(forward), inputs) if g is None else (jax.jit(both), (g, *inputs))
    return lambda: compiled(*arguments)


def _error(name: str, got: tuple[Any, ...], want: tuple[Any, ...], most: float) -> float:
    """The largest error, as a share of the largest value of what it is in.

    Args:
      name: of the implementation.
      got: its value, and the gradients of x and of the parameters if they are computed.
      want: the same in float64, None for the gradient of an integer.
      most: that is allowed.

    Raises:
      UserError: an error is larger, or not a number.
    """
    import numpy as np

    from vit_jax.types import UserError

    worst = 0.0
    for place, (ours, true) in enumerate(zip(got, want, strict=True)):
        if true is None:
            continue
        error = float(np.abs(np.asarray(ours, np.float64) - true).max() / np.abs(true).max())
        if not error <= most:
            argument = "x" if place == 1 else f"parameter {place - 1}"
            what = "is wrong" if place == 0 else f"is wrong: its gradient of {argument} is off"
            raise UserError(f"{name!r} {what} by {error:.2g} of the largest value; it is not timed.")
        worst = max(worst, error)
    return worst


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row: time, its floor in FLOPs and bytes, the dense product's time, how many times faster."""
    lines = [
        f"{'rows':>7s} {'runs as':12s} {'ms':>9s} {'GFLOP/s':>9s} {'GB/s':>7s} {'dense ms':>9s} "
        f"{'times faster (10th to 90th percentile)':s}"
    ]
    for r in rows:
        spread = f"{r['times dense (10th percentile)']:.2f} to {r['times dense (90th percentile)']:.2f}"
        lines.append(
            f"{r['rows']:>7d} {r['implementation']:12s} {1e3 * r['seconds']:>9.3f} {r['GFLOP/s']:>9.0f} "
            f"{r['GB/s']:>7.1f} {1e3 * r['dense seconds']:>9.3f} {r['times dense (median)']:.2f} ({spread})"
        )
    return "\n".join(lines)
