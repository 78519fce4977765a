"""Batches as pure functions of (seed, step), read ahead by threads.

The examples of step t follow from arithmetic alone (:func:`train_rows`, :func:`eval_rows`), so nothing but the step is
ever saved, any step can be the first, and any number of hosts makes the same global batch. Threads fill the rows of a
few batches ahead; a batch is one preallocated array per key.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from vit_jax.data.decode import Fit, decode
from vit_jax.data.permute import make_key, permute
from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.base import Unreadable, align
from vit_jax.types import UserError

OnError = Literal["raise", "skip"]
MAX_SKIPPED = 0.01
"""Share of a source's examples that ``on_error="skip"`` may leave out (one of them always may)."""

_CHUNK = 16  # rows one task decodes: enough to hide its cost, few enough to share a batch among threads


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples, and how the host prepares them.

    Attributes:
      path: training data, ``kind:rest`` (see :func:`vit_jax.data.sources.open_source`).
      val: validation data, all of it; None takes the data's own validation part or else holds some out.
      holdout: fraction (below 1) or number of examples to hold out where ``path`` has no validation part.
      split_seed: names the split; not the seed of training, so runs with several seeds share their validation set.
      canvas: side in pixels of the uint8 square that every image becomes on the host.
      on_error: an unreadable image is an error (``"raise"``), or replaced, counted and reported (``"skip"``).
      workers: threads; None means one per core, at most 32.
      prefetch: batches made ahead.
    """

    path: str
    val: str | None = None
    holdout: int | float = 0.1
    split_seed: int = 0
    canvas: int = 256
    on_error: OnError = "raise"
    workers: int | None = None
    prefetch: int = 3

    def __post_init__(self) -> None:
        for name, least in (("canvas", 1), ("prefetch", 1), ("workers", 1), ("holdout", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value} is too small; the least is {least}.")

    def open(self, split: Literal["train", "val"]) -> Source:
        """The source of one split; validation labels are counted in the classes of training."""
        if self.val is None:
            return open_source(self.path, split, holdout=self.holdout, seed=self.split_seed)
        train = open_source(self.path, "train", holdout=0)
        if split == "train":
            return train
        return align(open_source(self.val, "train", holdout=0), train.info.class_names, f"data.val={self.val!r}")


def train_rows(
    step: int, *, n: int, seed: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Example indices of this host's rows of the batch of ``step``: int64[batch_size / process_count].

    The stream of examples is one permutation of ``range(n)`` per epoch, one after the other, cut into batches; batches
    run across the borders of epochs. A host takes consecutive rows.
    """
    rows = batch_size // process_count
    position = step * batch_size + process_index * rows + np.arange(rows, dtype=np.int64)
    epochs, offsets = np.divmod(position, n)
    out = np.empty(rows, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(offsets[here], n, make_key(seed, int(epoch)))
    return out


def eval_rows(step: int, *, n: int, batch_size: int, process_index: int = 0, process_count: int = 1) -> np.ndarray:
    """Like :func:`train_rows` in the source's own order; -1 are the padding rows after the last example."""
    rows = batch_size // process_count
    position = step * batch_size + process_index * rows + np.arange(rows, dtype=np.int64)
    return np.where(position < n, position, -1)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How rows of a batch are filled from a source.

    An unreadable example raises with ``on_error="raise"``. With ``"skip"`` the next readable one takes its place in
    training (``replace``), which is a pure function of the data; in evaluation its row is masked.
    """

    source: Source
    canvas: int
    fit: Fit
    replace: bool
    on_error: OnError

    @property
    def may_skip(self) -> int:
        return min(len(self.source) - 1, max(1, int(MAX_SKIPPED * len(self.source))))

    def empty(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of the examples ``rows`` (-1: padding) before any image is read."""
        mask = rows >= 0
        return {
            "image": np.zeros((len(rows), self.canvas, self.canvas, 3), np.uint8),
            "size": np.full((len(rows), 2), self.canvas, np.int32),
            "label": np.zeros(len(rows), np.int32),
            "mask": mask,
            "index": np.where(mask, rows, 0).astype(np.uint32),
        }

    def fill(self, batch: dict[str, np.ndarray], rows: slice) -> dict[int, str]:
        """Reads some rows; returns the unreadable examples it met, with the reason."""
        unreadable: dict[int, str] = {}
        for row in range(*rows.indices(len(batch["mask"]))):
            while batch["mask"][row]:
                index = int(batch["index"][row])
                try:
                    self._read(index, batch, row)
                    break
                except Unreadable as e:
                    if self.on_error == "raise":
                        raise UserError(f"{e}; repair or remove it, or set data.on_error='skip'.") from None
                    unreadable[index] = str(e)
                if self.replace and len(unreadable) <= self.may_skip:  # beyond that the consumer raises
                    batch["index"][row] = (index + 1) % len(self.source)
                else:
                    batch["mask"][row] = False
        return unreadable

    def _read(self, index: int, batch: dict[str, np.ndarray], row: int) -> None:
        record = self.source[index]
        if not 0 <= record["label"] < self.source.info.num_classes:
            top = self.source.info.num_classes - 1
            raise UserError(f"the label {record['label']} of {record['name']} is outside 0..{top}.")
        batch["image"][row], batch["size"][row] = decode(record, self.canvas, self.fit)
        batch["label"][row] = record["label"]


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over host batches, made ahead by threads that end with the last batch, an error or :meth:`close`.

    Yields ``image`` uint8[B, canvas, canvas, 3], ``size`` int32[B, 2] original (height, width), ``label`` int32[B],
    ``mask`` bool[B] (False: padding), ``index`` uint32[B] (of the example that is really there).

    Attributes:
      unreadable: index -> reason, of the unreadable examples left out so far.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Callable[[int], np.ndarray],
        steps: Iterable[int],
        workers: int | None,
        prefetch: int,
    ):
        self.unreadable: dict[int, str] = {}
        self._reader, self._rows, self._steps, self._prefetch = reader, rows, iter(steps), prefetch
        threads = workers or min(32, os.cpu_count() or 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="vit_jax_data")
        self._ahead: collections.deque[tuple[dict[str, np.ndarray], list]] = collections.deque()
        self._read_ahead()

    @property
    def skipped(self) -> int:
        """How many different examples were left out because they are unreadable."""
        return len(self.unreadable)

    def close(self) -> None:
        """Stops the threads; what was made ahead is dropped."""
        self._steps = iter(())
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._ahead:
            self.close()
            raise StopIteration
        batch, tasks = self._ahead.popleft()
        try:
            self._read_ahead()
            for task in tasks:
                self.unreadable |= task.result()
            self._check_skipped()
        except BaseException:
            self.close()
            raise
        return batch

    def _read_ahead(self) -> None:
        while len(self._ahead) < self._prefetch and (step := next(self._steps, None)) is not None:
            batch = self._reader.empty(self._rows(step))
            starts = range(0, len(batch["mask"]), _CHUNK)
            tasks = [self._pool.submit(self._reader.fill, batch, slice(i, i + _CHUNK)) for i in starts]
            self._ahead.append((batch, tasks))

    def _check_skipped(self) -> None:
        if self.skipped > self._reader.may_skip:
            total, first = len(self._reader.source), min(self.unreadable)
            raise UserError(
                f"at least {self.skipped} of {total} examples are unreadable, more than {MAX_SKIPPED:.0%}; "
                f"for one, {self.unreadable[first]}."
            )


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    canvas: int,
    start_step: int = 0,
    steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    on_error: OnError = "raise",
    workers: int | None = None,
    prefetch: int = 3,
) -> Batches:
    """The batches of steps ``start_step`` to ``steps - 1`` (without end for None); see :func:`train_rows`.

    Args:
      source: training examples.
      batch_size: rows of the global batch, a multiple of ``process_count``; this host's share is yielded.
      seed: of the order of examples.
      canvas: side of the images; the whole image is squashed onto it.
      start_step: first step, for resuming.
      steps: total number of steps of the run.
      process_index: this host.
      process_count: number of hosts.
      on_error: see :class:`DataConfig`, like ``workers`` and ``prefetch``.

    Raises:
      UserError: more hosts than examples; while iterating, an unreadable image or too many of them.
    """
    _check_hosts(source, batch_size, process_count)
    hosts = {"process_index": process_index, "process_count": process_count}
    rows = functools.partial(train_rows, n=len(source), seed=seed, batch_size=batch_size, **hosts)
    order = itertools.count(start_step) if steps is None else range(start_step, steps)
    return Batches(Reader(source, canvas, "squash", True, on_error), rows, order, workers, prefetch)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    process_index: int = 0,
    process_count: int = 1,
    on_error: OnError = "raise",
    workers: int | None = None,
    prefetch: int = 3,
) -> Batches:
    """Every example once, in order; all hosts yield equally many batches. Arguments as for :func:`train_batches`.

    The short side of an image is resized to the canvas and its central square taken; the last batch is padded with
    masked rows (zero image, label and index).
    """
    _check_hosts(source, batch_size, process_count)
    hosts = {"process_index": process_index, "process_count": process_count}
    rows = functools.partial(eval_rows, n=len(source), batch_size=batch_size, **hosts)
    order = range(-(-len(source) // batch_size))
    return Batches(Reader(source, canvas, "center", False, on_error), rows, order, workers, prefetch)


def _check_hosts(source: Source, batch_size: int, process_count: int) -> None:
    assert batch_size > 0 and batch_size % process_count == 0, (batch_size, process_count)
    if process_count > len(source):
        raise UserError(f"{process_count} hosts share {len(source)} examples; use at most {len(source)} hosts.")
