"""Which file each thread reads: where a disk or a server never answers, a thread that still runs can name it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_files: dict[int, str] = {}


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Notes that this thread reads ``path`` while the block lasts."""
    thread = threading.get_ident()
    before = _files.get(thread, "")
    _files[thread] = os.fspath(path)
    try:
        yield
    finally:
        _files[thread] = before
        if not before:
            del _files[thread]


def by(thread: int) -> str:
    """What the thread of that identity reads; "" where that is not known."""
    return _files.get(thread, "")
