"""Files that others name, on this machine or at an address: what there is, and bytes of a size that fits."""

from __future__ import annotations

import errno
import glob as globbing
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from vit_jax.io import reads, retry, store

T = TypeVar("T")


def tried(path: str | Path, call: Callable[[], T]) -> T:
    """What ``call`` reads of ``path``: again where a disk or a server fails for a while (see :func:`.retry.retried`).

    What never ends is known by its name meanwhile (:func:`.reads.by`).
    """
    with reads.reading(path):
        return call() if store.is_address(path) else retry.retried(call, os.fspath(path))  # a store tries by itself


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened to read; a pipe, a device or a folder is refused at once, and nothing waits.

    Raises:
      OSError: it cannot be opened, is no regular file, or its name is none.
    """
    if store.is_address(path):
        return store.open_read(os.fspath(path))
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name holds a null byte", str(path))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return open(fd, "rb")
    os.close(fd)
    raise OSError(errno.EINVAL, "Is a directory" if stat.S_ISDIR(mode) else "no regular file", str(path))


def read(path: str | Path, limit: int) -> bytes:
    """The content of a regular file, see :func:`open_regular`.

    Raises:
      OSError: it cannot be read or has more than ``limit`` bytes.
    """
    return tried(path, lambda: _read(path, limit))


def _read(path: str | Path, limit: int) -> bytes:
    if store.is_address(path):
        return store.read(os.fspath(path), limit)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
        return file.read()


def ranges(path: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (offset, size), fewer where the file ends before.

    Raises:
      OSError: they cannot be read.
    """
    return tried(path, lambda: _ranges(path, places))


def _ranges(path: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
    if store.is_address(path):
        return store.ranges(path, places)
    fd = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(fd, size, offset) for offset, size in places]
    finally:
        os.close(fd)


def version(path: str) -> tuple[str, int]:
    """Another text for another file or another content of it, "" where a store does not tell; and its bytes.

    Raises:
      OSError: it is not there.
    """
    if store.is_address(path):
        found = store.info(path)
        return f"{path}|{found.size}|{found.version}" if found.version else "", found.size
    status = os.stat(path)
    return f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}", status.st_size


def is_dir(path: str) -> bool:
    """Whether a folder is there; of an address see :func:`.store.is_dir`."""
    return store.is_dir(path) if store.is_address(path) else os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether a file is there."""
    return exists(path) and not is_dir(path) if store.is_address(path) else os.path.isfile(path)


def exists(path: str) -> bool:
    """Whether a file or a folder is there."""
    return store.exists(path) if store.is_address(path) else os.path.exists(path)


def names(folder: str) -> list[str]:
    """The names in a folder.

    Raises:
      OSError: it cannot be listed.
    """
    return [entry.name for entry in store.entries(folder)] if store.is_address(folder) else os.listdir(folder)


def glob(pattern: str) -> list[str]:
    """The paths that a pattern means, sorted."""
    return store.glob(pattern) if store.is_address(pattern) else sorted(globbing.glob(pattern))


def beside(file: str, path: str) -> str:
    """What ``file`` calls ``path``, as seen from its folder; see :func:`.store.beside` for addresses."""
    if store.is_address(file):
        return store.beside(file, path)
    return os.path.join(os.path.dirname(os.path.abspath(file)), path)
