"""Coarse classes of classes: a table in a CSV file, or a tree of folders."""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.io import text
from vit_jax.types import UserError


class Levels(NamedTuple):
    """Classes and what they belong to.

    Attributes:
      classes: their names, in the order of the rows.
      names: of each level, those of its coarse classes.
      labels: int32 ``[classes, levels]``, numbers of the latter.
    """

    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    labels: np.ndarray


@functools.cache
def read(path: str) -> Levels:
    """Of a CSV file whose first row names the columns, the class and its levels, coarsest first, or of a folder.

    The folders of the classes lie in those of their coarse classes, ``animal/dog/poodle``, all equally deep; rows are
    in the order of the classes' names.

    Raises:
      UserError: there is none of both; rows differ in length, or a class has two.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        rows = sorted([name, *above] for *above, name in _leaves(place))
    else:
        rows = [row for row in csv.reader(text.lines(text.read(path, f"levels={path!r}"))) if row][1:]
    rows = [[cell.strip() for cell in row] for row in rows]
    if not rows or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        raise UserError(
            f"levels={path!r} gives no coarse class for each class; write a CSV file with the columns class and level, "
            "or folders coarse/class, all equally deep."
        )
    classes = tuple(row[0] for row in rows)
    if twice := next((name for name in classes if classes.count(name) > 1), None):
        raise UserError(f"levels={path!r} has two rows for {twice!r}; leave one.")
    columns = [[row[i] for row in rows] for i in range(1, len(rows[0]))]
    names = [tuple(sorted(set(column))) for column in columns]
    labels = [[known.index(cell) for cell in column] for known, column in zip(names, columns, strict=True)]
    return Levels(classes, tuple(names), np.asarray(labels, np.int32).T)


def _leaves(folder: pathlib.Path) -> Iterator[list[str]]:
    """Paths of the folders that hold no folder, as names."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for one in inner:
        below = list(_leaves(one))
        yield from ([one.name, *rest] for rest in below or [[]])


def check(levels: Levels, class_names: Sequence[str], path: str) -> None:
    """Raises :class:`UserError` where the rows are not the classes of the data, in their order."""
    pairs = zip(levels.classes, class_names, strict=False)
    differs = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if differs is not None:
        raise UserError(
            f"row {differs + 1} of levels={path!r} is {levels.classes[differs]!r}, and class {differs} of the data is "
            f"{class_names[differs]!r}; put the rows in the order of the classes."
        )
    if len(levels.classes) != len(class_names):
        raise UserError(f"levels={path!r} has {len(levels.classes)} rows, and the data {len(class_names)} classes.")
