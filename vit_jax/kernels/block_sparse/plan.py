"""A pattern known beforehand as a few dense products: blocks that read the same are taken together."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Pattern = tuple[tuple[int, ...], ...]
"""An index ``[out_blocks, per]`` that can be hashed."""


def as_pattern(index: np.ndarray) -> Pattern:
    return tuple(tuple(row) for row in index.tolist())


class Part(NamedTuple):
    """A product in which every source goes to every target.

    Attributes:
      sources: blocks of inputs.
      targets: blocks of outputs.
      slots: for every source, for every target, the t with ``index[target, t] == source``.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]


@functools.cache
def parts(pattern: Pattern) -> tuple[Part, ...]:
    """All blocks of the pattern, each in one part: outputs with equal inputs together, or inputs with equal outputs.

    Whichever has the narrower activations to gather and to add up. A row that names an input twice has no reading by
    inputs.
    """
    rows, readers, columns = (collections.defaultdict[Any, list[int]](list) for _ in range(3))
    for j, sources in enumerate(pattern):
        rows[sources].append(j)
        for i in sources:
            readers[i].append(j)
    by_output = [
        Part(sources, tuple(targets), tuple((t,) * len(targets) for t in range(len(sources))))
        for sources, targets in rows.items()
    ]
    if any(len(set(sources)) < len(sources) for sources in pattern):
        return tuple(by_output)
    for i in sorted(readers):
        columns[tuple(readers[i])].append(i)
    by_input = [
        Part(tuple(sources), targets, tuple(tuple(pattern[j].index(i) for j in targets) for i in sources))
        for targets, sources in columns.items()
    ]
    return tuple(by_input if width(by_input) < width(by_output) else by_output)


def width(found: Sequence[Part]) -> int:
    """Blocks of activations that the parts read and write."""
    return sum(len(part.sources) + len(part.targets) for part in found)


def runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``[0, 1, 2, 5]`` -> (0, 3), (5, 6)."""
    edges = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
    for low, high in itertools.pairwise(edges):
        yield blocks[low], blocks[high - 1] + 1


def sums(groups: Sequence[Sequence[int]], blocks: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Where the blocks of a result are found, when part p has computed those of ``groups[p]``.

    Returns:
      Of consecutive blocks: how many there are, and the (part, first block within the part) that have to be added;
      nothing where no part computes them.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in range(blocks)]
    for p, group in enumerate(groups):
        for at, block in enumerate(group):
            found[block].append((p, at))
    merged: list[tuple[int, list[tuple[int, int]]]] = []
    for terms in found:
        if merged:
            length, first = merged[-1]
            if terms == [(p, at + length) for p, at in first]:
                merged[-1] = (length + 1, first)
                continue
        merged.append((1, terms))
    return merged
