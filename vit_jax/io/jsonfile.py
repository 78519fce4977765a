"""JSON that others wrote: its value, or a sentence that says what is wrong with it."""

from __future__ import annotations

import json
import pathlib
from typing import TypeVar

from vit_jax.types import UserError

T = TypeVar("T", dict, list)
MAX_BYTES = 2**26
"""A larger file is refused: the largest that are read here, indices of shards, have a hundredth."""


def parse(text: str | bytes, kind: type[T], what: str, remedy: str = "") -> T:
    """The value of ``text``, an object (``dict``) or an array (``list``).

    Args:
      text: JSON.
      kind: of its value.
      what: its name, for errors.
      remedy: how a sentence about it ends, ``"; write one object a line"``.

    Raises:
      UserError: it is no JSON, or of another kind.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{what} is no JSON ({e}){remedy}.") from e
    if not isinstance(value, kind):
        raise UserError(f"{what} holds a JSON {type(value).__name__}{remedy}.")
    return value


def read(path: pathlib.Path, remedy: str = "") -> dict:
    """The object in a file; see :func:`parse`.

    Raises:
      UserError: it cannot be read, has more than :data:`MAX_BYTES`, is no JSON or holds no object.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes{remedy}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}){remedy}.") from e
    return parse(text, dict, str(path), remedy)
