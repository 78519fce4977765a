"""``parquet:PATTERN``: the layout of Hugging Face data sets: images with labels, with captions, or with both."""

from __future__ import annotations

import collections
import json
import threading
from typing import Any, NamedTuple

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources.base import MAX_CLASSES, Info, Record, Source, as_captions, digest
from vit_jax.data.sources.shards import open_shards
from vit_jax.types import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "cls")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentences")
_CACHED_GROUPS = 4
_LARGE_GROUP = 2**26


class Parquet:
    """Rows of some files in their order.

    ``image`` is binary or a struct with ``bytes``, ``label`` a number or a name, ``caption`` a text or a list of texts.
    Parquet is read by row groups, of which a few stay decoded; random access to large ones is slow, which a note says.
    """

    def __init__(self, paths: list[str]):
        self.paths = paths
        parts = [_read_part(path) for path in paths]  # one file open at a time
        rows = np.array([n for part in parts for n in part.rows], np.int64)
        if not rows.sum():
            raise UserError(f"no rows in {paths[0]}.")
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self.groups = np.array([(k, g) for k, part in enumerate(parts) for g in range(len(part.rows))], np.int32)
        self.columns = [(part.image, part.caption) for part in parts]
        self.labels, names = _labels(parts, paths)
        largest = max(part.largest for part in parts)
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
        images, texts = self._group(group)
        value = images[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        path = self.paths[self.groups[group][0]]
        if data is None:
            raise UserError(f"row {i} of {path} holds no image bytes; embed the images in the file.")
        record: Record = {"image": data, "label": int(self.labels[i]), "name": f"row {i} ({path})"}
        if texts is not None:
            record["captions"] = as_captions(texts[row].as_py())
        return record

    def _group(self, group: int) -> tuple[Any, Any]:
        """The images of a row group, and its captions as bytes (they may be no UTF-8) or None."""
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        k, g = (int(v) for v in self.groups[group])
        image, caption = self.columns[k]
        wanted = [image, caption] if self.info.captions else [image]
        table = _open(self.paths[k]).read_row_group(g, columns=wanted)
        found = table[image], _as_bytes(table[caption]) if self.info.captions else None
        with self._lock:
            self._cache[group] = found
            while len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        return found


def open_parquet(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens files by pattern; a folder with ``train*`` and ``validation*`` files is split by name, else by seed."""
    return open_shards("parquet", Parquet, "validation files", rest, split, holdout=holdout, seed=seed)


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


class _Part(NamedTuple):
    """What is kept of a file; it has labels, captions or both."""

    rows: list[int]  # of each row group
    largest: int  # bytes of a row group
    size: int  # bytes of all
    image: str
    caption: str | None
    captions: int  # the most of an image
    labels: Any  # a column, or None
    class_names: tuple[str, ...] | None


def _read_part(path: str) -> _Part:
    file = _open(path)
    there = file.schema_arrow
    image, label = (next((n for n in names if n in there.names), None) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    caption = next((n for n in CAPTION_COLUMNS if n in there.names and _holds_text(there.field(n).type)), None)
    if image is None:
        raise UserError(_missing(IMAGE_COLUMNS, there.names, path))
    if label is None and caption is None:
        end = _missing(LABEL_COLUMNS, there.names, path)
        raise UserError(f"{end.rstrip()} Captions are columns called {' or '.join(map(repr, CAPTION_COLUMNS))}.")
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    return _Part(
        rows=[group.num_rows for group in groups],
        largest=max([0, *(group.total_byte_size for group in groups)]),
        size=sum(group.total_byte_size for group in groups),
        image=image,
        caption=caption,
        captions=_most_captions(file, caption) if caption else 0,
        labels=file.read(columns=[label]).column(0) if label else None,
        class_names=_class_names(file, label) if label else None,
    )


def _missing(allowed: tuple[str, ...], there: list[str], path: str) -> str:
    return f"{path} has no column {' or '.join(map(repr, allowed))}{suggest(allowed[0], there)}"


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _as_bytes(column: Any) -> Any:
    import pyarrow

    listed = hasattr(column.type, "value_type")
    return column.cast(pyarrow.list_(pyarrow.binary()) if listed else pyarrow.binary())


def _most_captions(file: Any, column: str) -> int:
    """At least 1; lists are measured, one row group after the other."""
    from pyarrow import compute

    if not hasattr(file.schema_arrow.field(column).type, "value_type"):
        return 1
    groups = (file.read_row_group(g, columns=[column])[column] for g in range(file.num_row_groups))
    return max([1, *(compute.max(compute.list_value_length(g)).as_py() or 0 for g in groups)])


def _labels(parts: list[_Part], paths: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32[N] labels and the class names; zeros and () where no file has labels."""
    without = [path for path, part in zip(paths, parts, strict=True) if part.labels is None]
    if len(without) == len(paths):
        return np.zeros(sum(sum(part.rows) for part in parts), np.int32), ()
    if without:
        raise UserError(f"{without[0]} has no labels, but other files beside it do; open them apart, or with 'mix:'.")
    names = next((part.class_names for part in reversed(parts) if part.class_names), None)
    return _number([part.labels for part in parts], names, paths[0])


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
