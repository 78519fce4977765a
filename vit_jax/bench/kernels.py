"""Every implementation of a structured product against the dense product."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.bench.timing import alternate
from vit_jax.kernels.block_diagonal.case import BlockDiagonal
from vit_jax.kernels.block_sparse.case import BlockSparse
from vit_jax.kernels.case import Case
from vit_jax.kernels.int8.case import Int8
from vit_jax.kernels.monarch.case import Monarch
from vit_jax.kernels.products import matmul
from vit_jax.kernels.sparse24.case import Sparse24
from vit_jax.kernels.topk_mlp.case import TopKMLP
from vit_jax.types import UserError

CASES: dict[str, Callable[..., Callable[..., Case]]] = {
    "monarch": Monarch,
    "block_diagonal": BlockDiagonal,
    "block_sparse": BlockSparse,
    "sparse24": Sparse24,
    "int8": Int8,
    "topk_mlp": TopKMLP,
}
"""What can be timed, by name: options of the operation -> its case ``(rows, inputs, outputs, dtype)``."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest error allowed before anything is timed, as a share of the largest true value."""


def compare(case: Case, *, rounds: int, backward: bool = False) -> list[dict[str, Any]]:
    """One row for each implementation that runs here.

    What is to be timed is compared first: values with the dense product's, with ``backward`` also the gradients of x
    and of every parameter that is no integer.

    Args:
      case: the product at one size.
      rounds: pairs of measurements.
      backward: time value and gradients, not the value alone.

    Raises:
      UserError: an implementation is wrong.
    """
    weight, value = case.weight, case.value()
    g = jax.random.normal(jax.random.key(1), value.shape, case.x.dtype) if backward else None
    want = (value,) if g is None else (value, *case.gradients(g))
    candidates, errors = {}, {}
    for name in case.here():
        candidates[name] = _program(functools.partial(case.run, name), g, case.x, *case.parameters)
        errors[name] = _error(name, candidates[name](), want, TOLERANCE[case.x.dtype.name])
    times = alternate({"a dense weight": _program(matmul, g, case.x, weight)} | candidates, rounds)
    dense = times.pop("a dense weight")
    gflop, megabytes = ((3 if backward else 1) * n for n in (case.flops / 1e9, case.bytes / 1e6))
    return [
        {
            "implementation": name, "rows": int(case.x.shape[0]), "backward": backward, "error": errors[name],
            "seconds": own.median, "dense seconds": dense.median, **own.compared("times dense", dense),
            "GFLOP": gflop, "MB": megabytes,
            "GFLOP/s": gflop / own.median, "GB/s": megabytes / 1e3 / own.median,
        }
        for name, own in times.items()
    ]  # fmt: skip


def _program(product: Any, g: jax.Array | None, *inputs: jax.Array) -> Callable[[], tuple[Any, ...]]:
    """What is timed: ``(product(*inputs),)``, and with a cotangent ``g`` the gradients of all inputs behind it."""

    def both(g: Any, *inputs: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(product, *inputs)
        return y, *pull(g)

    compiled, arguments = (jax.jit(lambda *x: (product(*x),)), inputs) if g is None else (jax.jit(both), (g, *inputs))
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
