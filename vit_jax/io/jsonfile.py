"""JSON that others wrote: its value, or a sentence that says what is wrong with it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from vit_jax.io import atomic, files
from vit_jax.io import text as texts
from vit_jax.types import UserError

T = TypeVar("T", dict, list)
MAX_BYTES = 2**26
"""A larger file is refused: the largest that are read here, indices of shards, have a hundredth."""


def loads(text: str | bytes) -> Any:
    """The value of ``text``.

    Raises:
      ValueError: it is no JSON, nested too deeply, holds a number of thousands of digits, or an object repeats a key.
    """
    try:
        return json.loads(texts.decode(text) if isinstance(text, bytes) else text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object repeats the key {next(k for k in keys if keys.count(k) > 1)!r}")
    return found


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
        value = loads(text)
    except ValueError as e:
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
        data = files.read(path, MAX_BYTES)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}){remedy}.") from e
    return parse(data, dict, str(path), remedy)


def dumps(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON for people to read: indented, characters as they are, no NaN; ends with a line break.

    Raises:
      ValueError: a number is not finite.
    """
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=default) + "\n"


def write(path: pathlib.Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Writes :func:`dumps` as :func:`vit_jax.io.atomic.write_text` does.

    Raises:
      OSError: it cannot be written.
    """
    atomic.write_text(path, dumps(value, default))
