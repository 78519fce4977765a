"""Where this package keeps what it would otherwise fetch, read or compile again."""

from __future__ import annotations

import contextlib
import os
import pathlib


def folder(*below: str) -> pathlib.Path:
    """``$XDG_CACHE_HOME/vit_jax``, by default ``~/.cache/vit_jax``, and folders ``below`` it; nothing is created."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.path.expanduser(cache), "vit_jax", *below)


def trim(where: pathlib.Path, pattern: str, most: int) -> None:
    """Removes files in ``where`` that match ``pattern``, those used longest ago, until ``most`` bytes are left.

    :func:`used` is what counts as use. Another process may remove the same: what is gone is gone.
    """
    found = []
    for path in where.glob(pattern):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most:
            with contextlib.suppress(OSError):
                path.unlink()


def used(path: pathlib.Path) -> None:
    """Notes that a file was of use now."""
    with contextlib.suppress(OSError):
        os.utime(path)
