"""Reading a whole source once, to find what would stop a long run."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os

import numpy as np

from vit_jax.data.framing import CENTER
from vit_jax.data.image import MAX_PIXELS
from vit_jax.data.reader import Reader
from vit_jax.data.sources import Record, Source
from vit_jax.data.sources.base import Wrapped, valid_captions
from vit_jax.io import text

_PART = 64


@dataclasses.dataclass(frozen=True)
class Report:
    """What is in a source.

    Attributes:
      unreadable: example index -> reason, such as a truncated image or an empty caption.
      counts: int64[C], readable examples of each class.
      captions: how many there are, of examples without an empty or undecodable one.
      longest: bytes of the longest caption.
    """

    unreadable: dict[int, str]
    counts: np.ndarray
    captions: int = 0
    longest: int = 0

    def __add__(self, other: Report) -> Report:
        return Report(
            self.unreadable | other.unreadable,
            self.counts + other.counts,
            self.captions + other.captions,
            max(self.longest, other.longest),
        )


class _Judged(Wrapped):
    """A source that refuses bad captions and measures the good ones."""

    def __init__(self, source: Source):
        super().__init__(source)
        self.sizes: list[int] = []

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        if self.info.captions:
            self.sizes += [len(text.encode(caption)) for caption in valid_captions(record)]
        return record


def check(source: Source, *, max_pixels: int = MAX_PIXELS, workers: int | None = None) -> Report:
    """Decodes every image and judges every caption, in threads.

    Raises:
      UserError: a label is outside the classes, or the data cannot be read at all.
    """
    classes = source.info.num_classes

    def read(start: int) -> Report:
        judged = _Judged(source)
        reader = Reader(judged, canvas=8, frame=CENTER, mode="eval", on_error="skip", max_pixels=max_pixels)
        batch = reader.empty(np.arange(start, min(start + _PART, len(source))))
        unreadable = reader.fill(batch, slice(None)).unreadable
        counts = np.bincount(batch["label"][batch["mask"]], minlength=classes)[:classes]
        return Report(unreadable, counts, len(judged.sizes), max(judged.sizes, default=0))

    with concurrent.futures.ThreadPoolExecutor(workers or min(32, os.cpu_count() or 1)) as pool:
        parts = pool.map(read, range(0, len(source), _PART))
        return functools.reduce(Report.__add__, parts, Report({}, np.zeros(classes, np.int64)))
