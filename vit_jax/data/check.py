"""Reading a whole source once, to find what would stop a long run."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os

import numpy as np

from vit_jax.data.loader import Reader
from vit_jax.data.sources import Source

_PART = 64


@dataclasses.dataclass(frozen=True)
class Report:
    """``unreadable``: example index -> reason; ``counts``: int64[C], readable examples of each class."""

    unreadable: dict[int, str]
    counts: np.ndarray


def check(source: Source, *, workers: int | None = None) -> Report:
    """Decodes every image in full, in threads.

    Raises:
      UserError: a label is outside the classes, or the data cannot be read at all.
    """
    reader = Reader(source, canvas=8, fit="center", replace=False, on_error="skip")

    def read(start: int) -> Report:
        batch = reader.empty(np.arange(start, min(start + _PART, len(source))))
        unreadable = reader.fill(batch, slice(None))
        return Report(unreadable, np.bincount(batch["label"][batch["mask"]], minlength=source.info.num_classes))

    total = Report({}, np.zeros(source.info.num_classes, np.int64))
    with concurrent.futures.ThreadPoolExecutor(workers or min(32, os.cpu_count() or 1)) as pool:
        for part in pool.map(read, range(0, len(source), _PART)):
            total = Report(total.unreadable | part.unreadable, total.counts + part.counts)
    return total
