"""Time and memory of a contrastive loss and its gradient, chunked against dense."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.bench.timing import alternate
from vit_jax.config import lookup


def compare(name: str, batch: int, dim: int, *, chunk: int, rounds: int, alone: bool = False) -> dict[str, Any]:
    """Times a loss of random embeddings.

    Args:
      name: of the loss.
      batch: pairs.
      dim: width of the embeddings.
      chunk: rows of a chunk.
      rounds: pairs of measurements.
      alone: leave the dense form out, for batches that it cannot hold.

    Returns:
      Seconds and temporary megabytes of each form, and the chunked one's relative to the dense one's.

    Raises:
      UsageError: there is no such loss.
    """
    loss = lookup(losses.CONTRASTIVE, name, "loss")()
    image, text = jax.random.normal(jax.random.key(0), (2, batch, dim))
    image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    inputs = image, text, jnp.float32(1 / 0.07), jnp.float32(-10.0)
    mask = jnp.ones(batch, bool)
    forms = {"chunked": losses.Chunked(chunk)} | ({} if alone else {"dense": losses.Dense()})
    compiled: dict[str, Any] = {}
    for label, form in forms.items():
        mean = lambda *x, form=form: jnp.mean(loss(*x, mask, form))  # noqa: E731
        compiled[label] = jax.jit(jax.value_and_grad(mean, (0, 1, 2, 3))).lower(*inputs).compile()
    times = alternate({label: functools.partial(run, *inputs) for label, run in compiled.items()}, rounds)
    result: dict[str, Any] = {"loss": f"{name}, {batch} pairs of width {dim}, chunks of {chunk}"}
    for label, run in compiled.items():
        result[f"{label} seconds"] = times[label].median
        memory = run.memory_analysis()
        result[f"{label} temporary MB"] = memory.temp_size_in_bytes / 1e6
    if not alone:
        result |= times["dense"].compared("chunked takes times as long", times["chunked"])
        result["times less memory"] = result["dense temporary MB"] / result["chunked temporary MB"]
    return result
