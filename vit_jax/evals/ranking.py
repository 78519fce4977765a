"""Nearest neighbours among embeddings, and the rank of the right one, without luck in how ties fall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 2**23
"""Similarities held at a time (64 MiB)."""


def unit(x: np.ndarray, least: float = 1e-12) -> np.ndarray:
    """float64[..., E]: ``x`` divided by its length, or by ``least`` where it is shorter."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), least)


def similarities(queries: np.ndarray, gallery: np.ndarray, *, chunk: int = CHUNK) -> Iterator[tuple[slice, np.ndarray]]:
    """Inner products, a block of queries at a time.

    Sums are made in float64 and rounded to float32: equal embeddings then have equal similarities wherever they stand,
    which sums in float32 do not give. What is not finite (a NaN embedding knows nothing) is less than all else.

    Args:
      queries: float[Q, E].
      gallery: float[N, E].
      chunk: entries of a block, at least one row.

    Yields:
      ``slice`` of the queries and float32[block, N].
    """
    right = np.asarray(gallery, np.float64).T
    rows = max(1, chunk // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        with np.errstate(invalid="ignore", over="ignore"):
            values = (np.asarray(queries[block], np.float64) @ right).astype(np.float32)
        yield block, np.where(np.isfinite(values), values, -np.inf).astype(np.float32)


class Ranking(NamedTuple):
    """Where the best right item of each of Q queries comes in its list.

    Items of equal similarity have no order, so what follows is the mean over all orders: embeddings that are all the
    same score exactly what guessing does.
    """

    above: np.ndarray
    """int64[Q]: wrong items more similar than the best right one."""
    tied: np.ndarray
    """int64[Q]: wrong items as similar as it."""
    own: np.ndarray
    """int64[Q]: right items as similar as it, itself included."""

    def recall(self, k: int) -> np.ndarray:
        """float64[Q]: probability that a right item is among the first k, 1 - C(tied, m) / C(tied + own, m)."""
        miss = np.ones(len(self.above))
        for place in range(k):
            drawn = place - self.above  # items of the tie that stand before this place
            left = np.maximum(self.tied - drawn, 0) / np.maximum(self.tied + self.own - drawn, 1)
            miss *= np.where(drawn >= 0, left, 1.0)
        return 1 - miss

    def rank(self) -> np.ndarray:
        """float64[Q]: expected place of the first right item, 1 for the top."""
        return self.above + (self.tied + self.own + 1) / (self.own + 1)


def rank(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_owner: np.ndarray,
    gallery_owner: np.ndarray,
    *,
    chunk: int = CHUNK,
) -> Ranking:
    """Ranks a gallery for each query; right are the items that have the query's owner, at least one.

    Args:
      queries: float[Q, E], unit length for cosines.
      gallery: float[N, E].
      query_owner: int[Q].
      gallery_owner: int[N].
      chunk: as for :func:`similarities`.
    """
    found = np.zeros((3, len(queries)), np.int64)
    for block, values in similarities(queries, gallery, chunk=chunk):
        right = query_owner[block, None] == gallery_owner[None]
        assert right.any(axis=1).all()
        best = np.where(right, values, -np.inf).max(axis=1, keepdims=True)
        tie = values == best
        found[:, block] = ((values > best).sum(1), (tie & ~right).sum(1), (tie & right).sum(1))
    return Ranking(*found)
