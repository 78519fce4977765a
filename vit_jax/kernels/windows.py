"""Blocks of columns met through whole registers: slices of an activation that begin at a multiple of 128 lanes.

A block seldom begins at one, so a TPU kernel takes the aligned window around it; in the weight, what belongs to the
block's neighbours is zeros. Matrix units of 128 x 128 would have filled the block up with zeros anyway.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

LANES = 128


class Window(NamedTuple):
    """Columns of an activation around a block.

    Attributes:
      start: the first, a multiple of 128.
      stop: behind the last.
      skip: how many come before the block.
      row: of the laid-out weight, where they begin.
    """

    start: int
    stop: int
    skip: int
    row: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.stop - self.start)


def up(n: int, unit: int = LANES) -> int:
    """``n`` rounded up to a multiple of ``unit``."""
    return -(-n // unit) * unit


def no_less_work(area: int, inputs: int, outputs: int) -> str | None:
    """Why ``area`` multiplications a row are no less than a dense product's, as the end of a sentence, or None."""
    dense = up(inputs) * up(outputs)
    if area < dense:
        return None
    return f"blocks filled up to {LANES} lanes make {area / dense:.1f} times the work of a dense product"


def around(starts: Sequence[int], size: int, total: int) -> tuple[Window, ...]:
    """The windows of blocks of ``size`` columns that begin at ``starts``, of ``total`` columns."""
    found: list[Window] = []
    for start in starts:
        low = start // LANES * LANES
        found.append(Window(low, min(up(start + size), total), start - low, height(found)))
    return tuple(found)


def height(windows: Sequence[Window]) -> int:
    """Rows of a weight laid out by the windows, each filled up to a multiple of 128."""
    return windows[-1].row + up(windows[-1].stop - windows[-1].start) if windows else 0


def merged(windows: Sequence[Window], pieces: Sequence[Any]) -> Iterator[tuple[slice, Any]]:
    """Columns, and the sum of what the windows' ``pieces [rows, stop - start]`` hold for them."""
    bounds = sorted({edge for w in windows for edge in w[:2]})
    for low, high in itertools.pairwise(bounds):
        over = [(w, piece) for w, piece in zip(windows, pieces, strict=True) if w.start <= low and high <= w.stop]
        parts = [piece[:, low - w.start : high - w.start] for w, piece in over]
        yield slice(low, high), functools.reduce(lambda a, b: a + b, parts)
