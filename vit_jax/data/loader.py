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
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np

from vit_jax.checks import Checked, Pixels, Range, Seed, physical_memory
from vit_jax.config import resumable
from vit_jax.data.framing import CENTER, TRAINING, Framing
from vit_jax.data.image import MAX_PIXELS
from vit_jax.data.permute import hash64, make_key, permute
from vit_jax.data.prompts import read_templates
from vit_jax.data.reader import MAX_SKIPPED, TIMEOUT, Filled, OnError, Reader
from vit_jax.data.sources import Source, named, open_source
from vit_jax.data.sources.base import HOLDOUT, align
from vit_jax.data.sources.captioned import WithTokenizer
from vit_jax.data.sources.mixture import Mixture
from vit_jax.data.text import TextConfig
from vit_jax.types import Stuck, UserError

_NO_EPOCH = -1  # names the seed's use for captions, as epochs name its uses for the order
CHUNK = 16  # rows one task decodes: enough to hide its cost, few enough to share a batch among threads
_GRACE = 10.0  # seconds that closing waits for what is being read


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Which examples, and how the host prepares them.

    Attributes:
      path: training data, ``kind:rest`` (see :func:`vit_jax.data.sources.open_source`), or from Python a source.
      val: validation data, all of it; None takes the data's own validation part or else holds some out.
      holdout: fraction (below 1) or number of examples to hold out where ``path`` has no validation part.
      split_seed: names the split; not the seed of training, so runs with several seeds share their validation set.
      text: tokenizer and context length for captions; None reads images and labels only.
      canvas: side in pixels of the uint8 square that every image becomes on the host.
      frame: how images become that square in evaluation; in training all of an image is squashed onto it.
      on_error: an unreadable image is an error (``"raise"``), or replaced, counted and reported (``"skip"``).
      max_pixels: an image with more is unreadable, but for a JPEG, which can be decoded at a fraction of its size.
      workers: threads that read and decode; None means one per core, at most 32.
      prefetch: number of batches made ahead of the device.
      timeout: seconds that reading one example may take; then the run ends, and names it.
    """

    path: Source | str
    val: Source | str | None = None
    holdout: Annotated[int | float, HOLDOUT] = 0.1
    split_seed: Seed = 0
    text: TextConfig | None = None
    canvas: Pixels = 256
    frame: Framing = CENTER
    on_error: OnError = "raise"
    max_pixels: Annotated[int, Range(1, 2**40)] = resumable(MAX_PIXELS)
    workers: Annotated[int, Range(1, 1024)] | None = resumable(None)
    prefetch: Annotated[int, Range(1, 1024)] = resumable(3)
    timeout: Annotated[float, Range(0.1, 10**6)] = resumable(TIMEOUT)

    def open(self, split: Literal["train", "val"], classes: tuple[str, ...] | None = None) -> Source:
        """The source of one split; validation labels are counted in the classes of training.

        Args:
          split: ``"train"`` or ``"val"``.
          classes: those of training where they are known; else the training data tells them.

        Raises:
          UserError: see :func:`open_source`; or captions are wanted (``text``) and the data has none.
        """
        if self.val is None:
            return self._open(self.path, split, split, holdout=self.holdout, seed=self.split_seed)
        if split == "train":
            return self._open(self.path, "train", split, holdout=0)
        if classes is None:
            classes = self._open(self.path, "train", split, holdout=0).info.class_names
        return align(self._open(self.val, "train", split, holdout=0), classes, f"data.val={named(self.val)}")

    def open_other(self, path: str, part: Literal["train", "val"] = "val") -> Source:
        """A part of other data to evaluate with, prepared alike; its captions become tokens if it has any."""
        return self._open(path, part, "val", required=False, holdout=self.holdout, seed=self.split_seed)

    def _open(self, path: Source | str, part: str, use: str, *, required: bool = True, **options: Any) -> Source:
        """The ``part`` of the data at ``path``, for ``use`` in training or validation."""
        text = self.text
        templates = read_templates(text.templates) if text and text.templates else ()
        source = open_source(path, part, templates=templates, **options)
        if text is None or not (source.info.captions or required):
            return source
        if not source.info.captions:
            where = f" (in {', '.join(source.silent)})" if isinstance(source, Mixture) else ""
            raise UserError(
                f"{named(path)} has images without captions{where}; set data.text.templates, such as 'photo', to "
                "caption them by class, or take data that has captions, such as 'csv:', 'jsonl:' or 'digits_pairs'."
            )
        return WithTokenizer(source, text.encoder(), first=use == "train" and text.choose == "first")


def positions(step: int, *, batch_size: int, places: np.ndarray | None = None) -> np.ndarray:
    """Where the rows at ``places`` of the batch of ``step`` lie in the stream of examples, which is cut into batches.

    Args:
      step: counts batches from 0.
      batch_size: rows of the global batch.
      places: int64[rows] in ``range(batch_size)``, of the rows that a host holds; None for all.
    """
    return step * batch_size + (np.arange(batch_size, dtype=np.int64) if places is None else places)


def train_rows(step: int, *, n: int, seed: int, **rows: Any) -> np.ndarray:
    """Example indices of the rows of the batch of ``step`` that :func:`positions` is asked for.

    The stream of examples is one permutation of ``range(n)`` per epoch, one after the other; batches run across the
    borders of epochs.
    """
    position = positions(step, **rows)
    epochs, offsets = np.divmod(position, n)
    out = np.empty(len(position), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(offsets[here], n, make_key(seed, int(epoch)))
    return out


def eval_rows(step: int, *, n: int, **rows: Any) -> np.ndarray:
    """Like :func:`train_rows` in the source's own order; -1 are the padding rows after the last example."""
    position = positions(step, **rows)
    return np.where(position < n, position, -1)


def caption_draws(step: int, *, seed: int, **rows: Any) -> np.ndarray:
    """uint64 numbers, one for each of :func:`positions`: modulo how many captions an image has, they choose one.

    A function of the seed and the position alone, so any number of hosts and any first step choose alike.
    """
    return hash64(positions(step, **rows).astype(np.uint64) ^ np.uint64(make_key(seed, _NO_EPOCH)))


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over host batches, made ahead by threads that end with the last batch, an error or :meth:`close`.

    Yields ``image`` uint8[B, canvas, canvas, 3], ``size`` int32[B, 2] original (height, width), ``label`` int32[B],
    ``mask`` bool[B] (False: padding), ``index`` uint32[B] (of the example that is really there). Where the source has
    an encoder of length L: in training ``text`` int32[B, L], one caption; in evaluation ``text`` int32[B, K, L], all of
    them, filled up with padding, and ``captions`` int32[B], how many there are.

    Attributes:
      unreadable: index -> reason, of the unreadable examples left out so far.
      truncated: how many captions were cut so far, because they did not fit.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Callable[[int], np.ndarray],
        steps: Iterable[int],
        workers: int | None,
        prefetch: int,
        draws: Callable[[int], np.ndarray] | None = None,
    ):
        self.unreadable: dict[int, str] = {}
        self.truncated = 0
        self._told = (0, 0)
        self._reader, self._rows, self._draws = reader, rows, draws
        self._steps, self._prefetch = iter(steps), prefetch
        threads = workers or min(32, os.cpu_count() or 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="vit_jax_data")
        self._ahead: collections.deque[tuple[dict[str, np.ndarray], list]] = collections.deque()
        self._tasks: list[concurrent.futures.Future[Filled]] = []  # of the batch that is waited for
        self._read_ahead()

    @property
    def skipped(self) -> int:
        """How many different examples were left out because they are unreadable."""
        return len(self.unreadable)

    def close(self) -> None:
        """Stops the threads; what was made ahead is dropped. One that reads and does not end is left alone."""
        self._steps = iter(())
        self._pool.shutdown(wait=False, cancel_futures=True)
        tasks = [t for _, tasks in [({}, self._tasks), *self._ahead] for t in tasks if not t.cancelled()]
        reading = concurrent.futures.wait(tasks, 0 if self._reader.overdue() else _GRACE).not_done
        self._ahead.clear()
        self._pool.shutdown(wait=not reading)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._ahead:
            self.close()
            raise StopIteration
        batch, self._tasks = self._ahead.popleft()
        try:
            self._read_ahead()
            for task in self._tasks:
                filled = self._waited(task)
                self.unreadable |= filled.unreadable
                self.truncated += filled.truncated
            self.check_skipped(self.unreadable)
        except BaseException:
            self.close()
            raise
        return batch

    def _waited(self, task: concurrent.futures.Future[Filled]) -> Filled:
        """The result of ``task``; raises :class:`Stuck` where what a thread reads takes too long."""
        limit = self._reader.timeout
        while not concurrent.futures.wait([task], limit / 10).done:
            if what := self._reader.overdue():
                raise Stuck(
                    f"{what} is being read for more than {limit:g} s (data.timeout); look whether the disk or the "
                    "server still answers, then run the same command again."
                )
        return task.result()

    def _read_ahead(self) -> None:
        while len(self._ahead) < self._prefetch and (step := next(self._steps, None)) is not None:
            batch = self._reader.empty(self._rows(step))
            draws = self._draws(step) if self._draws else None
            starts = range(0, len(batch["mask"]), CHUNK)
            tasks = [self._pool.submit(self._reader.fill, batch, slice(i, i + CHUNK), draws) for i in starts]
            self._ahead.append((batch, tasks))

    def news(self) -> tuple[list[int], int]:
        """Which examples were found to be unreadable, and how many captions were cut, since the last call."""
        known, cut = self._told
        self._told = len(self.unreadable), self.truncated
        return list(itertools.islice(self.unreadable, known, None)), self.truncated - cut

    def check_skipped(self, unreadable: Collection[int]) -> None:
        """Raises :class:`UserError` where these, those of other hosts among them, are more than may be left out."""
        if len(unreadable) > self._reader.may_skip:
            total, first = len(self._reader.source), min(unreadable)
            raise UserError(
                f"at least {len(unreadable)} of {total} examples are unreadable, more than {MAX_SKIPPED:.0%}; "
                f"for one, {self.unreadable.get(first, f'example {first}, on another host')}."
            )


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    canvas: int,
    start_step: int = 0,
    steps: int | None = None,
    places: np.ndarray | None = None,
    on_error: OnError = "raise",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    prefetch: int = 3,
    timeout: float = TIMEOUT,
) -> Batches:
    """The batches of steps ``start_step`` to ``steps - 1`` (without end for None); see :func:`train_rows`.

    Args:
      source: training examples.
      batch_size: rows of the global batch.
      seed: random seed of the order of examples and of the choice among captions.
      canvas: side of the images; the whole image is squashed onto it.
      start_step: first step, for resuming.
      steps: total number of steps of the run.
      places: int64[rows], which rows of every global batch to yield, :func:`vit_jax.sharding.host_rows` for instance;
        None yields all.
      on_error: an unreadable image is an error (``"raise"``), or replaced, counted and reported (``"skip"``).
      max_pixels: an image with more is unreadable, but for a JPEG.
      workers: threads that read and decode; None means one per core, at most 32.
      prefetch: number of batches made ahead.
      timeout: seconds that reading one example may take.

    Raises:
      UserError: batches that do not fit into memory; while iterating, an unreadable image or too many of them.
    """
    _check_memory(batch_size if places is None else len(places), canvas, prefetch)
    here: dict[str, Any] = {"batch_size": batch_size, "places": places}
    rows = functools.partial(train_rows, n=len(source), seed=seed, **here)
    draws = functools.partial(caption_draws, seed=seed, **here) if source.info.encoder else None
    order = itertools.count(start_step) if steps is None else range(start_step, steps)
    reader = Reader(source, canvas, TRAINING, "train", on_error, max_pixels, timeout)
    return Batches(reader, rows, order, workers, prefetch, draws)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    frame: Framing = CENTER,
    places: np.ndarray | None = None,
    on_error: OnError = "raise",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    prefetch: int = 3,
    timeout: float = TIMEOUT,
) -> Batches:
    """Every example once, in order; all hosts yield equally many batches. Arguments as for :func:`train_batches`.

    ``frame`` says how an image becomes the canvas; the last batch is padded with masked rows (zero image, label and
    index).
    """
    _check_memory(batch_size if places is None else len(places), canvas, prefetch)
    rows = functools.partial(eval_rows, n=len(source), batch_size=batch_size, places=places)
    order = range(-(-len(source) // batch_size))
    return Batches(Reader(source, canvas, frame, "eval", on_error, max_pixels, timeout), rows, order, workers, prefetch)


def _check_memory(rows: int, canvas: int, prefetch: int) -> None:
    need, have = rows * canvas**2 * 3 * (prefetch + 1), physical_memory()
    if need > have:
        raise UserError(
            f"{prefetch + 1} batches of {rows:,} images of {canvas} px take {need / 2**30:,.0f} GiB; this machine has "
            f"{have / 2**30:,.0f}; lower batch_size, data.canvas or data.prefetch."
        )
