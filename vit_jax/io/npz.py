"""NumPy's ``.npz`` read member by member: the archive is someone else's, so its claims are checked before its data."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from vit_jax.types import UserError

MAX_MEMBERS = 2**16
"""Arrays in one file."""
MAX_RATIO, FREE_BYTES = 64, 2**28
"""A file may unpack to that many times its size, and to so many bytes (256 MiB) whatever its size."""

Leaf = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]
"""Name, shape, dtype and the function that reads it."""


def open_npz(path: pathlib.Path, stack: contextlib.ExitStack) -> Iterator[Leaf]:
    """The arrays of an ``.npz``; a leaf of unnamed two-byte items (what NumPy makes of it) is bfloat16.

    Args:
      path: the file; it stays open as long as ``stack``.

    Raises:
      UserError: it holds what is no array of numbers, or claims to unpack to too much.
      Exception: it is damaged (of many kinds, also while a leaf is read).
    """
    archive = stack.enter_context(zipfile.ZipFile(path))
    members = archive.infolist()
    total, limit = sum(m.file_size for m in members), max(FREE_BYTES, MAX_RATIO * path.stat().st_size)
    if len(members) > MAX_MEMBERS or total > limit:
        raise UserError(f"{path} claims {len(members):,} arrays of {total:,} bytes in all (a decompression bomb?).")
    seen: set[str] = set()
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in seen:
            why = "twice" if name in seen else "which is no array (.npy)"
            raise UserError(f"{path} holds {member.filename!r} {why}; write it again with numpy.savez.")
        seen.add(name)
        shape, dtype = _header(archive, member, f"{name} in {path}")
        yield name, shape, dtype, functools.partial(_read, archive, member, dtype)


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        if version != (1, 0):  # whose header is at most 64 KiB long; the others are for records, which are no weights
            raise ValueError(f"the header of {what} is of version {version[0]}.{version[1]}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(f)
        start = f.tell()
    if dtype.hasobject:
        raise UserError(f"{what} is a pickled object; it was not opened, because unpickling runs code.")
    if start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{what} is {dtype}{list(shape)} in {member.file_size:,} bytes")
    if dtype == np.dtype("V2"):
        return shape, np.dtype(ml_dtypes.bfloat16)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise UserError(f"{what} is of type {dtype}; weights are floats, integers or booleans of at most 64 bits.")
    return shape, dtype.newbyteorder("=")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype) -> np.ndarray:
    with archive.open(member) as f:
        array = np.lib.format.read_array(f, allow_pickle=False)
    return array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype, copy=False)
