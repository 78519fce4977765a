"""Writing a file or a folder: all of it or nothing, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

from vit_jax.io import retry
from vit_jax.types import UserError


def is_full(error: Exception) -> bool:
    """Whether the disk has no more room, in the words of the system or of a storage library; a quota and a limit on the
    size of files (``ulimit -f``) count.
    """
    words = ("No space left", "RESOURCE_EXHAUSTED", "File too large")
    known = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return known or any(word in str(error) for word in words)


def reason(error: Exception) -> str:
    """Why something could not be written, as a part of a sentence."""
    if is_full(error):
        return "the disk is full; free some space and run the same command again"
    known = retry.number(error)  # what tensorstore says besides is long
    text = getattr(error, "strerror", None) or (os.strerror(known) if known else str(error)) or type(error).__name__
    return text.splitlines()[0][:200]


@contextlib.contextmanager
def writing(what: str, remedy: str = "") -> Iterator[None]:
    """Turns what the system says inside the block into a sentence about ``what``, which ends with ``remedy``.

    Raises:
      UserError: ``what`` cannot be written.
    """
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} cannot be written: {reason(e)}{remedy}.") from e


@contextlib.contextmanager
def unsaid_under(error: BaseException | None) -> Iterator[None]:
    """For ``__exit__``: a :class:`UserError` inside the block is not raised where ``error`` is under way already."""
    try:
        yield
    except UserError:
        if error is None:
            raise


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty file beside ``path`` to write to, which takes its place once the block ends and it is on the disk.

    A block that fails leaves what was at ``path``, and nothing beside it; one that is killed leaves a file whose name
    starts with ``.unfinished-``. Several processes may write to one path: the last one's file stays, whole. A link at
    ``path`` is replaced, what it leads to stays as it is.

    Raises:
      OSError: the folder does not exist or cannot be written to, or ``path`` is no name of a file.
    """
    new = _beside(path).with_suffix(path.suffix[:16])
    if os.path.exists(path) and not os.path.isfile(path):  # a device would be replaced by a file
        raise OSError(errno.EINVAL, "Is a directory" if os.path.isdir(path) else "no regular file", str(path))
    new.touch(exist_ok=False)
    try:
        yield new
        with open(new, "rb") as f:
            os.fsync(f.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    r"""Writes a file of UTF-8, lone surrogates (of names that are none) as escapes, ``\udce9``; see :func:`new_file`.

    Raises:
      OSError: it cannot be written.
    """

    def write() -> None:
        with new_file(path) as new:
            new.write_text(text, encoding="utf-8", errors="backslashreplace")

    retry.retried(write, str(path))


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes ``path`` once the block ends, and vanishes where it fails.

    Raises:
      OSError: ``path`` or a folder above it cannot be made.
    """
    new = _beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir()  # whose mode is what the user's mask leaves
    try:
        yield new
        new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(path: pathlib.Path) -> pathlib.Path:
    """A name beside ``path`` that nobody guesses."""
    if not path.name or "\0" in str(path):
        raise OSError(errno.EINVAL, "not the name of a file", str(path))
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise OSError(errno.EINVAL, "an address, and only runs are written to one: name a file here", str(path))
    return path.with_name(f".unfinished-{uuid.uuid4().hex}")
