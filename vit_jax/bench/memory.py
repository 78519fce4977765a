"""Temporaries of a train step against its time: what the backward pass keeps, and what it computes again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vit_jax.bench import steps
from vit_jax.bench.timing import alternate
from vit_jax.layers.block import REMAT
from vit_jax.layers.saved import Saved


def compare(
    name: str, dtype: str, batch: int, size: int, *, scan: bool, rounds: int, saved: Sequence[Saved] = ("float",)
) -> list[dict[str, Any]]:
    """Compiles the train step with each ``remat`` of a model and times them in turn.

    Args:
      name: of the model.
      dtype: of the computation.
      batch: images a step.
      size: side of the image, in pixels.
      scan: whether blocks run as one loop.
      rounds: measurements of each; 0 compiles alone.
      saved: as which numbers is kept what is kept, one row for each.

    Returns:
      A row for each, that of "none" and of the first of ``saved`` before the others: megabytes of temporaries at their
      peak, as the compiler plans them, and of these together with parameters, optimizer state and batch; the shares of
      both of the first row's, and how many times as long a step takes.

    Raises:
      UserError: the model does not classify images, or its blocks do not fit into a loop.
    """
    model = steps.classifier("memory", name, dtype=dtype, scan=scan)
    images, labels = steps.inputs(model, batch, size)
    state = jax.eval_shape(lambda: steps.initial("train", model, images))
    programs = {
        kept: steps.program("train", model.clone(remat=kept[0], saved=kept[1])).lower(state, images, labels).compile()
        for kept in itertools.product(("none", *REMAT), saved)
    }
    planned = {kept: program.memory_analysis() for kept, program in programs.items()}
    temporary = {kept: found.temp_size_in_bytes / 1e6 for kept, found in planned.items()}
    whole = {kept: temporary[kept] + found.argument_size_in_bytes / 1e6 for kept, found in planned.items()}
    first = next(iter(programs))
    rows = [
        {
            "remat": kept[0], "saved": kept[1], "temporaries MB": mb, "share of none's": mb / temporary[first],
            "with state MB": whole[kept], "share of none's with state": whole[kept] / whole[first],
        }
        for kept, mb in temporary.items()
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

    times = list(alternate({str(kept): next_step(program) for kept, program in programs.items()}, rounds).values())
    for row, timing in zip(rows, times, strict=True):
        row |= {"seconds": timing.median, **times[0].compared("times none's seconds", timing)}
    return rows
