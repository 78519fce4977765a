"""Text that others wrote: its encoding, its lines, its names. What is written goes through :mod:`vit_jax.io.atomic`."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from vit_jax.io import files
from vit_jax.types import UserError

MAX_BYTES = 2**28
"""A larger text is refused where it is read as a whole."""
MAX_LINE = 2**24
"""A longer line is refused where a text is read line by line."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(data: bytes, errors: str = "strict") -> str:
    """UTF-8, or what a mark at the start says: UTF-8, UTF-16 (as Excel writes "Unicode text") or UTF-32.

    Raises:
      UnicodeDecodeError: it is not, and ``errors`` is ``"strict"``; ``"surrogateescape"`` keeps odd bytes for whoever
        judges the text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            if encoding != "utf-8":  # half a character is no byte that could be kept
                errors = "replace" if errors == "surrogateescape" else errors
            return data[len(mark) :].decode(encoding, errors)
    return data.decode("utf-8", errors)


def encode(text: str) -> bytes:
    """UTF-8 of any string: escaped bytes as they were, other lone surrogates (of JSON) as three odd bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def stream(path: str | Path) -> Iterator[str]:
    """The lines of a file with their ends, one after the other; see :func:`decode` and :func:`lines`.

    Undecodable bytes become surrogate escapes.

    Raises:
      UserError: it cannot be read, is no regular file, or a line has more than :data:`MAX_LINE` characters.
    """
    try:
        with files.open_regular(path) as file:
            start = file.read(4)
            mark, encoding = next(((m, e) for m, e in _MARKS if start.startswith(m)), (b"", "utf-8"))
            file.seek(len(mark))
            errors = "surrogateescape" if encoding == "utf-8" else "replace"
            found = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
            number = 0
            while line := found.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise UserError(f"line {number} of {path} has more than {MAX_LINE:,} characters; it is no table.")
                yield line
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}).") from e


def escaped(name: str) -> str:
    r"""``name`` for a place that takes characters only: lone surrogates, of bytes that are no text, as ``\udce9``."""
    return name.encode("utf-8", "backslashreplace").decode()


def lines(text: str) -> list[str]:
    r"""The lines of a text, which end with \n, \r\n or \r and nothing else: other separators are part of a caption."""
    found = re.split(r"\r\n|\n|\r", text)
    return found if found[-1] else found[:-1]


def normal(name: str) -> str:
    """A name in the form in which names are compared: a Mac writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def read(path: str | Path, what: str = "", limit: int = MAX_BYTES, errors: str = "strict") -> str:
    """The text of a file.

    Args:
      path: regular file.
      what: what it is, for errors; by default its path.
      limit: bytes that it may have.
      errors: see :func:`decode`.

    Raises:
      UserError: it cannot be read, is too large, or no text in a known encoding.
    """
    what = what or str(path)
    try:
        return decode(files.read(path, limit), errors)
    except OSError as e:
        raise UserError(f"{what} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{what} is no UTF-8 (byte {e.start}); save it as UTF-8.") from e
