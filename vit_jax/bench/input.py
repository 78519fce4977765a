"""Batches from a data source without any model, against bare decoding of the same files by as many threads."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.bench.timing import Timing, processor
from vit_jax.data import resizing
from vit_jax.data.framing import CENTER, TRAINING
from vit_jax.data.image import upright
from vit_jax.data.loader import CHUNK, train_batches, train_rows
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Record, Source

BATCHES = 4
"""In a measurement."""
STAGES = ("read", "decode", "resize", "batch", "transfer")


def measure(data: str, *, batch: int, canvas: int, rounds: int, workers: int = 0) -> dict[str, Any]:
    """Images per second of the loader and of bare decoding, in turn, and where a thread's time goes.

    Bare decoding reads the same examples in the same order and decodes them to all of their pixels, in threads that
    share them in the loader's way; what is decoded is dropped. Both are timed from the first thread's start to the last
    one's end.

    Args:
      data: the source.
      batch: images a batch.
      canvas: side of the canvas, in pixels.
      rounds: pairs of measurements, of four batches each.
      workers: threads; 0 for one per core.
    """
    source = open_source(data, holdout=0)
    threads = workers or min(32, os.cpu_count() or 1)
    sides: dict[str, Callable[[int], None]] = {
        "loader": lambda first: _load(source, batch, canvas, first, threads),
        "bare decoding": lambda first: _bare(source, batch, first, threads),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):  # the first does not count
        for name, side in sides.items():
            start, used = time.perf_counter(), time.process_time()
            side(BATCHES * i)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    times = {name: Timing(np.asarray(s[1:])) for name, s in seconds.items()}
    images = BATCHES * batch
    loader, bare = times.values()
    size = np.mean([_bytes(source[int(i)]) for i in _rows(source, batch, BATCHES)])
    return {
        "data": data,
        "processor": f"{processor()}, {threads} threads",
        "resized by": resizing.note(),
        **{f"{name} images/s": images / t.median for name, t in times.items()},
        **loader.compared("times bare decoding", bare),
        "MB/s of files": images / loader.median * size / 1e6,
        **{f"{name} CPU s per 1000 images": 1000 * float(np.median(s[1:])) / images for name, s in cpu.items()},
        **breakdown(source, batch, canvas),
    }


def breakdown(source: Source, batch: int, canvas: int) -> dict[str, float]:
    """Milliseconds of one thread an image, by :data:`STAGES`: medians over a batch, of transfers the least of three."""
    images = np.zeros((batch, canvas, canvas, 3), np.uint8)
    spent = np.zeros((batch, 4))
    for row, index in enumerate(_rows(source, batch, 1)):
        clock = [time.perf_counter()]
        record = source[int(index)]
        clock.append(time.perf_counter())
        with upright(record, canvas, TRAINING, fast=True) as (image, _):
            clock.append(time.perf_counter())
            resized = TRAINING(image, canvas)
            clock.append(time.perf_counter())
        images[row] = np.asarray(resized)
        clock.append(time.perf_counter())
        spent[row] = np.diff(clock)
    transfers = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(jax.device_put(images))
        transfers.append((time.perf_counter() - start) / batch)
    return {
        f"{s} ms an image": 1e3 * float(t)
        for s, t in zip(STAGES, [*np.median(spent, axis=0), min(transfers)], strict=True)
    }


def _rows(source: Source, batch: int, batches: int, first: int = 0) -> np.ndarray:
    """The examples of some batches of training, in their order."""
    steps = range(first, first + batches)
    return np.concatenate([train_rows(step, n=len(source), seed=0, batch_size=batch) for step in steps])


def _load(source: Source, batch: int, canvas: int, first: int, threads: int) -> None:
    steps: Any = {"start_step": first, "steps": first + BATCHES}
    for _ in train_batches(source, batch_size=batch, seed=0, canvas=canvas, workers=threads, **steps):
        pass


def _bare(source: Source, batch: int, first: int, threads: int) -> None:
    rows = _rows(source, batch, BATCHES, first)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
        list(pool.map(lambda chunk: _decode(source, chunk), chunks))


def _decode(source: Source, rows: np.ndarray) -> None:
    for index in rows:
        with upright(source[int(index)], 1, CENTER):
            pass


def _bytes(record: Record) -> int:
    image = record["image"]
    return image.nbytes if isinstance(image, np.ndarray) else len(image)
