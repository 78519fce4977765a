"""``vit_jax bench kernels``: every implementation of a structured product against the dense product."""

from __future__ import annotations

import argparse
from typing import Annotated, Any

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest error allowed before anything is timed, as a share of the largest true value."""


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of rows and implementation.

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
    import numpy as np

    from vit_jax import benchmark
    from vit_jax.kernels.products import matmul
    from vit_jax.types import UserError

    want = np.asarray(case.x, np.float64) @ np.asarray(case.weight, np.float64)
    candidates = {}
    g = jax.random.normal(jax.random.key(1), want.shape, case.x.dtype)

    def timed(product: Any, *parameters: jax.Array) -> Any:
        if not args.backward:
            compiled = jax.jit(product)
            return lambda: compiled(case.x, *parameters)

        def both(cotangent: jax.Array, *inputs: jax.Array) -> Any:
            y, pull = jax.vjp(product, *inputs)
            return y, pull(cotangent)

        compiled = jax.jit(both)
        return lambda: compiled(g, case.x, *parameters)

    for name in case.here():
        product = lambda x, *parameters, name=name: case.run(name, x, *parameters)  # noqa: E731
        got = np.asarray(jax.jit(product)(case.x, *case.parameters), np.float64)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        if not error <= TOLERANCE[args.dtype]:
            raise UserError(f"{name!r} is wrong by {error:.2g} of the largest value; it is not timed.")
        candidates[name] = (error, timed(product, *case.parameters))
    dense = timed(matmul, case.weight)
    times = benchmark.alternate({"a dense weight": dense} | {k: v[1] for k, v in candidates.items()}, args.rounds)
    passes = 3 if args.backward else 1
    out = []
    for name, (error, _) in candidates.items():
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
