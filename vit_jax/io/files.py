"""Bytes of files that others name: regular files, of a size that fits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened to read; a pipe, a device or a folder is refused at once, and nothing waits.

    Raises:
      OSError: it cannot be opened, is no regular file, or its name is none.
    """
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
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
        return file.read()
