"""Batches from a data source, without any model."""

from __future__ import annotations

import time
from typing import Any

from vit_jax.data.loader import train_batches
from vit_jax.data.sources import open_source


def measure(data: str, *, batch: int, canvas: int, rounds: int) -> dict[str, Any]:
    """Images per second and the processor's seconds per 1000 images, over ``rounds`` batches after the first.

    Args:
      data: the source.
      batch: images a batch.
      canvas: side of the canvas, in pixels.
      rounds: batches to time.
    """
    batches = train_batches(open_source(data, holdout=0), batch_size=batch, seed=0, canvas=canvas)
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()
    images = rounds * batch
    return {"data": data, "images/s": images / wall, "CPU seconds per 1000 images": 1000 * cpu / images}
