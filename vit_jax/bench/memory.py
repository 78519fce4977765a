"""Temporaries of a train step against its time: what the backward pass keeps, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vit_jax.bench import steps
from vit_jax.bench.timing import alternate
from vit_jax.layers.block import REMAT


def compare(name: str, dtype: str, batch: int, size: int, *, scan: bool, rounds: int) -> list[dict[str, Any]]:
    """Compiles the train step with each ``remat`` of a model and times them in turn.

    Args:
      name: of the model.
      dtype: of the computation.
      batch: images a step.
      size: side of the image, in pixels.
      scan: whether blocks run as one loop.
      rounds: measurements of each; 0 compiles alone.

    Returns:
      A row for each: megabytes of temporaries at their peak, as the compiler plans them, and of these together with
      parameters, optimizer state and batch; the shares of both of those without recomputation, and how many times as
      long a step takes.

    Raises:
      UserError: the model does not classify images, or its blocks do not fit into a loop.
    """
    model = steps.classifier("memory", name, dtype=dtype, scan=scan)
    images, labels = steps.inputs(model, batch, size)
    state = jax.eval_shape(lambda: steps.initial("train", model, images))
    programs = {
        remat: steps.program("train", model.clone(remat=remat)).lower(state, images, labels).compile()
        for remat in ("none", *REMAT)
    }
    planned = {remat: program.memory_analysis() for remat, program in programs.items()}
    temporary = {remat: found.temp_size_in_bytes / 1e6 for remat, found in planned.items()}
    whole = {remat: temporary[remat] + found.argument_size_in_bytes / 1e6 for remat, found in planned.items()}
    rows = [
        {
            "remat": remat, "temporaries MB": mb, "share of none's": mb / temporary["none"],
            "with state MB": whole[remat], "share of none's with state": whole[remat] / whole["none"],
        }
        for remat, mb in temporary.items()
    ]  # fmt: skip
    if not rounds:
        return rows
    state = jax.jit(lambda: steps.initial("train", model, images))()

    def next_step(program: Any) -> Callable[[], Any]:
        def run() -> Any:
            nonlocal state  # one for all: a model of its own for each would take their memory, too
            state, value = program(state, images, labels)
            return value, jax.tree.leaves(state)[0]

        return run

    times = alternate({remat: next_step(program) for remat, program in programs.items()}, rounds)
    for row in rows:
        timing = times[row["remat"]]
        row |= {"seconds": timing.median, **times["none"].compared("times none's seconds", timing)}
    return rows
