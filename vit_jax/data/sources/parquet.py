"""``parquet:PATTERN``: the image layout of Hugging Face data sets."""

from __future__ import annotations

import collections
import json
import threading
from typing import Any

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources.base import MAX_CLASSES, Info, Record, Source, align, take_split
from vit_jax.data.sources.shards import find_shards
from vit_jax.types import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "cls")
_CACHED_GROUPS = 4
_LARGE_GROUP = 2**26


class Parquet:
    """Rows of some files in their order. ``image`` is binary or a struct with ``bytes``; ``label`` a number or a name.

    Parquet is read by row groups, of which a few stay decoded; random access to large ones is slow, which a note says.
    """

    def __init__(self, paths: list[str]):
        self.paths = paths
        starts, groups, sizes, columns = [0], [], [], []
        names: tuple[str, ...] | None = None
        for k, path in enumerate(paths):
            file = _open(path)
            self.image_column = _column(file, IMAGE_COLUMNS, path)
            label_column = _column(file, LABEL_COLUMNS, path)
            names = _class_names(file, label_column) or names
            columns.append(file.read(columns=[label_column]).column(0))
            for g in range(file.num_row_groups):
                groups.append((k, g))
                starts.append(starts[-1] + file.metadata.row_group(g).num_rows)
                sizes.append(file.metadata.row_group(g).total_byte_size)
        if not sum(map(len, columns)):
            raise UserError(f"no rows in {paths[0]}.")
        self.labels, names = _number(columns, names, paths[0])
        self.starts, self.groups = np.array(starts, np.int64), np.array(groups, np.int32)
        note = (
            f"row groups of {paths[0]} hold up to {max(sizes) / 2**20:.0f} MB, each read whole for one image; "
            "reading is faster from small groups or from tar files (write_tar)."
        )
        self.info = Info(names, len(self.labels), (note,) if max(sizes) > _LARGE_GROUP else ())
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
        value = self._group(group)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        path = self.paths[self.groups[group][0]]
        if data is None:
            raise UserError(f"row {i} of {path} holds no image bytes; embed the images in the file.")
        return {"image": data, "label": int(self.labels[i]), "name": f"row {i} ({path})"}

    def _group(self, group: int) -> Any:
        """The image column of a row group."""
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        k, g = (int(v) for v in self.groups[group])
        column = _open(self.paths[k]).read_row_group(g, columns=[self.image_column]).column(0)
        with self._lock:
            self._cache[group] = column
            while len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        return column


def open_parquet(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens files by pattern; a folder with ``train*`` and ``validation*`` files is split by name, else by seed."""
    paths, is_split = find_shards("parquet", rest, (".parquet",), split)
    if not is_split:
        data = Parquet(paths)
        return take_split(data, data.labels, split, holdout, seed, f"parquet:{rest}")
    if split == "train":
        return Parquet(paths)
    train = Parquet(find_shards("parquet", rest, (".parquet",), "train")[0])
    return align(Parquet(paths), train.info.class_names, f"the validation files of parquet:{rest}")


def _open(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet: sources need pyarrow; run: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as e:
        raise UserError(f"{path} is truncated or no parquet file ({str(e).splitlines()[0]}).") from None


def _column(file: Any, allowed: tuple[str, ...], path: str) -> str:
    there = file.schema_arrow.names
    found = next((name for name in allowed if name in there), None)
    if found is None:
        raise UserError(f"{path} has no column {' or '.join(map(repr, allowed))}{suggest(allowed[0], there)}")
    return found


def _class_names(file: Any, column: str) -> tuple[str, ...] | None:
    """Names of a ``ClassLabel`` feature, which Hugging Face keeps as JSON in the metadata of the schema."""
    metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    return tuple(map(str, feature["names"])) if isinstance(feature, dict) and feature.get("names") else None


def _number(columns: list[Any], names: tuple[str, ...] | None, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32[N] labels and the class names; names given as text are sorted."""
    if sum(c.null_count for c in columns):
        raise UserError(f"some rows of {path} have no label.")
    values = np.concatenate([c.to_numpy() for c in columns])
    if values.dtype.kind not in "iu":
        distinct, labels = np.unique(values.astype(str), return_inverse=True)
        names = names or tuple(distinct.tolist())
        unknown = next((v for v in distinct.tolist() if v not in names), None)
        if unknown is not None:
            raise UserError(f"the label {unknown!r} in {path} is not among its classes{suggest(unknown, names)}")
        return np.array([names.index(v) for v in distinct.tolist()], np.int32)[labels], names
    top = len(names) if names else MAX_CLASSES
    if len(outside := values[(values < 0) | (values >= top)]):
        raise UserError(f"the label {outside[0]} in {path} is outside 0..{top - 1}.")
    return values.astype(np.int32), names or tuple(map(str, range(int(values.max()) + 1)))
