"""``parquet:PATTERN``: the layout of Hugging Face data sets: images with labels, with captions, or with both."""

from __future__ import annotations

import collections
import functools
import threading
from typing import Any

import numpy as np

from vit_jax.data.sources import columns
from vit_jax.data.sources.base import Info, Record, Source, Unreadable, as_captions, digest, read_image
from vit_jax.data.sources.columns import Named
from vit_jax.data.sources.parquet_columns import as_bytes, labels_of, open_file, read_part, reason
from vit_jax.data.sources.shards import open_shards
from vit_jax.io import files
from vit_jax.types import UserError

_CACHED_GROUPS = 4
_LARGE_GROUP = 2**26
MAX_GROUP = 2**30
"""Bytes of a row group, unpacked: it is read whole for one of its images."""


class Parquet:
    """Rows of some files in their order.

    Images are binary, a struct with ``bytes`` or ``path``, or a path; labels numbers or names; captions texts or lists
    of texts. Parquet is read by row groups, of which a few stay decoded; random access to large ones is slow, which a
    note says.
    """

    def __init__(self, paths: list[str], named: Named):
        self.paths = paths
        parts = [read_part(path, named) for path in paths]  # one file open at a time
        rows = np.array([n for part in parts for n in part.rows], np.int64)
        if not rows.sum():
            raise UserError(f"no rows in {paths[0]}.")
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self.groups = np.array([(k, g) for k, part in enumerate(parts) for g in range(len(part.rows))], np.int32)
        self.columns = [(part.image, part.caption) for part in parts]
        self.labels, names = labels_of(parts, paths)
        largest = max(part.largest for part in parts)
        if largest > MAX_GROUP:
            raise UserError(
                f"row groups of {paths[0]} hold up to {largest:,} bytes, {MAX_GROUP:,} is the most; write it with "
                "smaller ones, or as tar files."
            )
        note = (
            f"row groups of {paths[0]} hold up to {largest / 2**20:.0f} MB, each read whole for one image; "
            "reading is faster from small groups or from tar files (write_tar)."
        )
        captions = max(part.captions for part in parts) if all(part.captions for part in parts) else 0
        known = digest(names, self.labels, np.array([part.size for part in parts]))
        self.info = Info(names, len(self.labels), (note,) if largest > _LARGE_GROUP else (), captions, digest=known)
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        row = i - int(self.starts[group])
        name = f"row {i} ({self.paths[self.groups[group][0]]})"
        images, texts = self._group(group, name)
        record: Record = {
            "image": _image(images[row].as_py(), name, self.paths[self.groups[group][0]]),
            "label": int(self.labels[i]),
            "name": name,
        }
        if texts is not None:
            record["captions"] = as_captions(texts[row].as_py())
        return record

    def _group(self, group: int, name: str) -> tuple[Any, Any]:
        """The images of a row group, and its captions as bytes (they may be no UTF-8) or None."""
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        k, g = (int(v) for v in self.groups[group])
        image, caption = self.columns[k]
        wanted = [image, caption] if self.info.captions else [image]
        try:
            path = self.paths[k]
            table = files.tried(path, lambda: open_file(path).read_row_group(g, columns=wanted))
            found = table[image], as_bytes(table[caption]) if self.info.captions else None
        except (OSError, ValueError) as e:  # pyarrow's errors are of these kinds
            raise Unreadable(f"{name} cannot be read ({reason(e)})") from None
        with self._lock:
            self._cache[group] = found
            while len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        return found


def _image(value: Any, name: str, table: str) -> bytes:
    """The encoded image: in the table, or in a file that it names, relative to its folder.

    Raises:
      Unreadable: there is none.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, str):
        data, path = None, data
    if data:
        return data
    if isinstance(path, str) and path:
        return read_image(files.beside(table, path))
    raise Unreadable(f"{name} holds no image")


def open_parquet(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens files by pattern; a folder with ``train*`` and ``validation*`` files is split by name, else by seed."""
    pattern, named = columns.parse("parquet", rest)
    make = functools.partial(Parquet, named=named)
    return open_shards("parquet", make, "validation files", pattern, split, holdout=holdout, seed=seed)
