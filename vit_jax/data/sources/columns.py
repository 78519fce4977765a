"""Columns of tables: what they are called, and what their labels mean."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.config import lookup, suggest
from vit_jax.data.sources.base import MAX_CLASSES
from vit_jax.io import text
from vit_jax.types import UserError

IMAGE = (
    "filepath", "path", "image", "img", "file_name", "filename", "image_path", "image_id", "jpg", "png", "webp", "file",
)  # fmt: skip
LABEL = ("label", "labels", "cls", "class", "class_name", "category", "target")
CAPTION = ("caption", "captions", "text", "title", "sentences", "comment")
"""Usual names, whatever their case; of several that are there the first is taken."""


@dataclasses.dataclass(frozen=True)
class Named:
    """Names of columns that a path gives after ``?``: ``csv:/a.csv?label=breed&separator=;``.

    Attributes:
      image: column of images, or of their paths.
      label: column of labels; with ``""`` there are none.
      caption: column of captions; with ``""`` there are none.
      separator: what separates the columns of a table; a tab is written ``tab``.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    separator: str | None = None

    def find(self, kind: str, there: Sequence[str]) -> str | None:
        """The column of a ``kind`` (a field) among those that are ``there``, None without any.

        Raises:
          UserError: it is named and not there, or there twice.
        """
        usual: tuple[str, ...] = {"image": IMAGE, "label": LABEL, "caption": CAPTION}[kind]
        wanted = getattr(self, kind)
        if wanted == "":
            return None
        if wanted is not None and wanted not in there:
            raise UserError(f"there is no column {wanted!r}{suggest(wanted, there)}")
        names = collections.defaultdict(list)
        for name in there:
            names[name.strip().lower()].append(name)
        found = [wanted] if wanted else next((names[name] for name in usual if name in names), [])
        if len(found) > 1 or (found and list(there).count(found[0]) > 1):
            raise UserError(f"there are several columns {found[0]!r}; rename all but one.")
        return found[0] if found else None


def parse(kind: str, rest: str) -> tuple[str, Named]:
    """``"PATTERN?label=NAME&image=NAME"`` -> the pattern and the names; a ``?`` of a pattern stays.

    Raises:
      UsageError: a key that :class:`Named` has not.
    """
    match = re.fullmatch(r"(.*?)\?(\w+=[^&?]*(?:&\w+=[^&?]*)*)", rest, re.DOTALL)
    if not match:
        return rest, Named()
    given = dict(item.partition("=")[::2] for item in match[2].split("&"))
    allowed = [f.name for f in dataclasses.fields(Named) if f.name != "separator" or kind == "csv"]
    for key in given:
        lookup(dict.fromkeys(allowed), key, f"key of '{kind}:{match[1]}'")
    return match[1], Named(**given)


def missing(kind: str, there: Sequence[str], source: str) -> str:
    """The end of a sentence on a column that is not there, with how to name it."""
    usual: tuple[str, ...] = {"image": IMAGE, "label": LABEL, "caption": CAPTION}[kind]
    near = suggest(usual[0], there).rstrip(".?")
    return f"has no column {', '.join(map(repr, usual[:4]))}{near}; name it: {source}?{kind}=COLUMN"


Label = int | str


def as_label(value: Any) -> Label | None:
    """A number or a name from what a table holds, None for nothing; whole floats, as pandas writes, are numbers.

    Raises:
      ValueError: it is neither, a list of several labels for instance.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        raise ValueError("several labels of one image cannot be learned here; write one label an image")
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} is neither a number nor a name")
    value = value.strip()
    return value or None


def numbered(labels: Sequence[Label | None], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32[N] labels and the class names; zeros and none where no example has a label.

    Texts that are all whole numbers are numbers, others are names, sorted as bytes.

    Raises:
      UserError: some have none, or a number is out of range.
    """
    if all(label is None for label in labels):
        return np.zeros(len(labels), np.int32), ()
    if None in labels:
        raise UserError(f"{sum(label is None for label in labels)} images of {where} have no label, others have one.")
    distinct: dict[Label, int] = {}
    code = np.array([distinct.setdefault(label, len(distinct)) for label in labels if label is not None], np.int32)
    if all(isinstance(label, int) or re.fullmatch(r"-?[0-9]{1,18}(\.0{0,9})?", label) for label in distinct):
        numbers = [int(str(label).partition(".")[0]) for label in distinct]
        values = in_range(np.array(numbers, object), None, where)
        return values[code], names_of(values)
    names = sorted({str(label) for label in distinct}, key=text.encode)
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[str(label)] for label in distinct], np.int32)[code], tuple(names)


def in_range(values: np.ndarray, names: Sequence[str] | None, where: str) -> np.ndarray:
    """Labels as int32, if they are numbers of classes: of ``names``, or below :data:`.base.MAX_CLASSES`."""
    top = len(names) if names else MAX_CLASSES
    if len(outside := values[(values < 0) | (values >= top)]):
        raise UserError(f"the label {outside[0]} in {where} is outside 0..{top - 1}.")
    return values.astype(np.int32)


def names_of(values: np.ndarray) -> tuple[str, ...]:
    """Numbers as names, from 0 to the largest."""
    return tuple(map(str, range(int(values.max()) + 1)))
