"""The columns of a parquet file: which hold images, labels and captions, and what their types mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources import columns
from vit_jax.data.sources.columns import Named
from vit_jax.io import jsonfile, store, text
from vit_jax.io.extras import needed
from vit_jax.types import UserError

MAX_ROWS = 2**24
"""Of one file, whose labels are read as a whole."""


class Part(NamedTuple):
    """What is kept of a file; it has labels, captions or both."""

    rows: list[int]  # of each row group
    largest: int  # bytes of a row group
    size: int  # bytes of all
    image: str
    caption: str | None
    captions: int  # the most of an image
    labels: np.ndarray | None  # int64[N]
    texts: tuple[str, ...] | None  # what labels count into where they are names
    class_names: tuple[str, ...] | None


def open_file(path: str) -> Any:
    """The file, its header read.

    Raises:
      UserError: it is no parquet file.
    """
    with needed("a parquet: source", "parquet"):
        import pyarrow.parquet
    try:
        return pyarrow.parquet.ParquetFile(store.open_read(path, 0) if store.is_address(path) else path)
    except (OSError, ValueError, MemoryError) as e:  # pyarrow's errors are of these kinds
        if store.is_address(path) and isinstance(e, OSError) and e.strerror:
            raise UserError(f"{path} cannot be read ({e.strerror}).") from None
        raise UserError(f"{path} is truncated or no parquet file ({reason(e)}).") from None


def reason(error: Exception) -> str:
    """The first line of what pyarrow says, which may be long."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def read_part(path: str, named: Named) -> Part:
    """Everything but images and captions.

    Raises:
      UserError: a column is missing, or of a type that means nothing here.
    """
    file = open_file(path)
    there = file.schema_arrow
    image, label, caption = _find(there, named, path)
    if file.metadata.num_rows > MAX_ROWS:
        raise UserError(f"{path} has {file.metadata.num_rows:,} rows, {MAX_ROWS:,} is the most of one file.")
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    try:
        labels, texts = _values(file, label, path) if label else (None, None)
        return Part(
            rows=[group.num_rows for group in groups],
            largest=max([0, *(group.total_byte_size for group in groups)]),
            size=sum(group.total_byte_size for group in groups),
            image=image,
            caption=caption,
            captions=_most_captions(file, caption) if caption else 0,
            labels=labels,
            texts=texts,
            class_names=_class_names(file, label, path) if label else None,
        )
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"the columns of {path} cannot be read ({reason(e)}).") from None


def _find(there: Any, named: Named, path: str) -> tuple[str, str | None, str | None]:
    """Names of the columns of images, labels and captions."""
    allowed = {
        "image": [n for n in there.names if _may_be_image(there.field(n).type)]
        or [n for n in there.names if _is_text(there.field(n).type)],  # paths
        "label": there.names,
        "caption": [n for n in there.names if _holds_text(there.field(n).type)],
    }
    try:
        image, label, caption = (named.find(kind, names) for kind, names in allowed.items())
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    if image is None:
        raise UserError(f"{path} {columns.missing('image', there.names, f'parquet:{path}')}.")
    label, caption = (None if name == image else name for name in (label, caption))
    if label is None and caption is None:
        raise UserError(
            f"{path} {columns.missing('label', there.names, f'parquet:{path}')}. Captions are columns called "
            f"{' or '.join(map(repr, columns.CAPTION[:4]))}."
        )
    return image, label, caption


def _plain(kind: Any) -> Any:
    """The type of the values of a dictionary."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _may_be_image(kind: Any) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    if types.is_struct(kind):
        return any(kind.field(i).name in ("bytes", "path") for i in range(kind.num_fields))
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind)


def _holds_text(kind: Any) -> bool:
    return _is_text(kind.value_type if _is_list(kind) else kind)


def as_bytes(column: Any) -> Any:
    """A column of texts, or of lists of texts, as bytes: they may be no UTF-8."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = pyarrow.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if not _is_list(column.type):
        return column.cast(pyarrow.binary())
    if types.is_dictionary(column.type.value_type):
        column = column.cast(pyarrow.list_(column.type.value_type.value_type))
    return column.cast(pyarrow.list_(pyarrow.binary()))


def _most_captions(file: Any, column: str) -> int:
    """At least 1; lists are measured, one row group after the other."""
    from pyarrow import compute

    if not _is_list(file.schema_arrow.field(column).type):
        return 1
    groups = (file.read_row_group(g, columns=[column])[column] for g in range(file.num_row_groups))
    return max([1, *(compute.max(compute.list_value_length(g)).as_py() or 0 for g in groups)])


def labels_of(parts: list[Part], paths: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32[N] labels and the class names; zeros and () where no file has labels."""
    without = [path for path, part in zip(paths, parts, strict=True) if part.labels is None]
    if len(without) == len(paths):
        return np.zeros(sum(sum(part.rows) for part in parts), np.int32), ()
    if without:
        raise UserError(f"{without[0]} has no labels, but other files beside it do; open them apart, or with 'mix:'.")
    names = next((part.class_names for part in reversed(parts) if part.class_names), None)
    if len({part.texts is None for part in parts}) > 1:
        raise UserError(f"labels are numbers in some of {', '.join(paths[:3])} and names in others; write one kind.")
    values = np.concatenate([part.labels for part in parts if part.labels is not None])
    if parts[0].texts is None:
        return columns.in_range(values, names, paths[0]), names or columns.names_of(values)
    distinct = {name for part in parts for name in part.texts or ()}
    names = names or tuple(sorted(distinct, key=text.encode))
    if unknown := sorted(distinct - set(names), key=text.encode):
        raise UserError(f"the label {unknown[0]!r} in {paths[0]} is not among its classes{suggest(unknown[0], names)}")
    position = {name: i for i, name in enumerate(names)}
    tables = [np.array([position[name] for name in part.texts or ()], np.int32) for part in parts]
    return np.concatenate([t[part.labels] for t, part in zip(tables, parts, strict=True) if len(t)]), names


def _values(file: Any, label: str, path: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """A column of labels by its type: int64[N] and None of numbers; of names, what each of them is among the texts.

    Raises:
      UserError: another type, or a row without a label.
    """
    from pyarrow import types

    kind = _plain(file.schema_arrow.field(label).type)
    if _is_list(kind) or types.is_fixed_size_list(kind):
        raise UserError(
            f"the column {label!r} of {path} holds lists: several labels of one image cannot be learned here; write "
            "one label an image."
        )
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or _is_text(kind)):
        raise UserError(f"the column {label!r} of {path} holds {kind}, which is neither a number nor a name.")
    texts: dict[bytes, int] = {}
    parts = [np.zeros(0, np.int64)]
    for group in range(file.num_row_groups):  # as arrays, one row group after the other: Python objects would be many
        column = file.read_row_group(group, columns=[label]).column(0)
        if column.null_count:
            raise UserError(f"{column.null_count} rows of {path} have no label.")
        parts.append(_coded(column, texts) if _is_text(kind) else _whole(column.cast(kind).to_numpy(), label, path))
    names = tuple(name.decode("utf-8", "surrogateescape") for name in texts)
    return np.concatenate(parts), names if _is_text(kind) else None


def _coded(column: Any, texts: dict[bytes, int]) -> np.ndarray:
    """int64[N]: the number of each name in ``texts``, which grows."""
    coded = as_bytes(column).combine_chunks().dictionary_encode()
    table = np.array([texts.setdefault(name, len(texts)) for name in coded.dictionary.to_pylist()], np.int64)
    return table[coded.indices.to_numpy()]


def _whole(values: np.ndarray, label: str, path: str) -> np.ndarray:
    """Numbers as int64[N]; pandas makes floats of whole numbers."""
    whole = values.astype(np.int64) if values.dtype.kind != "f" or np.isfinite(values).all() else None
    if whole is None or not np.array_equal(whole, values):
        raise UserError(f"the column {label!r} of {path} holds fractions; labels are whole numbers or names.")
    return whole


def _class_names(file: Any, column: str, path: str) -> tuple[str, ...] | None:
    """Names of a ``ClassLabel`` feature, which Hugging Face keeps as JSON in the metadata of the schema.

    Metadata that say something else are of no use here and decide nothing.

    Raises:
      UserError: they name a class twice.
    """
    value: Any = (file.schema_arrow.metadata or {}).get(b"huggingface")
    if value is None:
        return None
    try:
        value = jsonfile.loads(value)
    except ValueError:
        return None
    for key in ("info", "features", column, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        return None
    if len(set(value)) < len(value):
        raise UserError(f"the metadata of {path} name a class of {column!r} twice.")
    return tuple(value)
