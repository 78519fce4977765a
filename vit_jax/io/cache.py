"""Where this package keeps what it would otherwise fetch, read or compile again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re

import vit_jax
from vit_jax.types import UserError

MAX_BYTES = "VIT_JAX_MAX_DOWNLOAD", 2**36
"""The variable that says how many bytes a fetched file may have, and how many that are without it (64 GiB)."""
MAX_NAME = 200
"""Bytes of a name in it; file systems take 255, of which other programs use some for endings of theirs."""


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


def code() -> str:
    """SHA-256 of all Python files of this package: what they worked out is kept for as long as they stay the same."""
    root, whole = pathlib.Path(vit_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.glob("**/*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def keep_paired(where: pathlib.Path, suffix: str, other: str) -> None:
    """Removes files in ``where`` that end in ``suffix`` and have no twin that ends in ``other``."""
    for path in where.glob(f"*{suffix}"):
        if not path.with_name(path.name.removesuffix(suffix) + other).exists():
            path.unlink(missing_ok=True)


def used(path: pathlib.Path) -> None:
    """Notes that a file was of use now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def check_size(name: str, size: int) -> None:
    """Raises a :class:`UserError` where what is called ``name`` has more than :data:`MAX_BYTES`."""
    variable, most = MAX_BYTES
    text = os.environ.get(variable) or str(most)
    if not re.fullmatch(r"\d{1,15}", text):
        raise UserError(f"{variable}={text!r} is no number of bytes.")
    if size > int(text):
        raise UserError(f"{name!r} has more than {int(text):,} bytes; {variable}=BYTES allows more.")


def length(name: str) -> int:
    """Bytes of a name, whatever characters it has."""
    return len(name.encode("utf-8", "surrogatepass"))
