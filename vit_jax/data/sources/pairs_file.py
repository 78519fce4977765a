"""``csv:PATTERN`` and ``jsonl:PATTERN``: tables of local image files with their labels, their captions, or both."""

from __future__ import annotations

import csv
import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.sources import columns
from vit_jax.data.sources.base import Info, Record, Source, Strings, as_captions, digest, read_image
from vit_jax.data.sources.columns import Label, Named, as_label, numbered
from vit_jax.data.sources.shards import open_shards
from vit_jax.io import files, jsonfile, store, text
from vit_jax.types import UserError

SEPARATORS = "\t;|,"
"""What may separate the columns of a table: the first of these that its header holds outside of quotes."""


class Row(NamedTuple):
    """One row: where it is, the path as written, its label (None without any) and its captions."""

    where: str
    path: str
    label: Label | None
    captions: tuple[str, ...]


Rows = Callable[[str, Named], Iterator[Row]]


class PairsFile:
    """The images of some tables in the order of first appearance; several rows of an image are several captions of it.

    Relative paths start at the folder of their table. Images are opened when they are read, not before. Rows have
    labels, captions or both; where only some of the captions have labels, these are left out, which a note says.
    """

    def __init__(self, tables: list[str], rows: Rows, named: Named):
        captions: dict[str, tuple[str, ...]] = {}
        labels: dict[str, Label | None] = {}
        for table in tables:
            for row in rows(table, named):
                image = _image(row, table)
                captions[image] = captions.get(image, ()) + row.captions
                if labels.setdefault(image, row.label) != row.label:
                    raise UserError(
                        f"{row.where} gives the label {row.label!r} to {row.path!r}, an earlier line "
                        f"{labels[image]!r}; write one label an image."
                    )
        if not captions:
            raise UserError(f"no rows in {tables[0]}.")
        counts = np.fromiter(map(len, captions.values()), np.int64, len(captions))
        without = sum(label is None for label in labels.values())
        notes: tuple[str, ...] = ()
        if 0 < without < len(labels) and counts.any():
            labels = dict.fromkeys(labels)
            notes = (f"{without} images of {tables[0]} have no label; the labels of the others were left out.",)
        self.labels, names = numbered(list(labels.values()), tables[0])
        self.paths = Strings.pack(list(captions))
        self.captions = Strings.pack([text for texts in captions.values() for text in texts])
        self.ends = np.cumsum(counts)
        plain = [path.partition("://")[2] if store.is_address(path) else path for path in captions]
        moved = len(os.path.commonpath([min(plain), max(plain)]))  # where the files lie does not matter
        known = digest([path[moved:] for path in plain], self.captions, self.ends, names, self.labels)
        most = int(counts.max())
        self.info = Info(names, len(captions), notes, captions=most if names else max(1, most), digest=known)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Record:
        path = self.paths[i]
        first, last = (int(self.ends[i - 1]) if i else 0), int(self.ends[i])
        image = read_image(_spelled(path))
        record: Record = {"image": image, "label": int(self.labels[i]), "name": path}
        if self.info.captions:
            record["captions"] = tuple(self.captions[k] for k in range(first, last))
        return record


def _image(row: Row, table: str) -> str:
    if not row.path:
        raise UserError(f"{row.where} names no image.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", row.path):
        raise UserError(
            f"{row.where} names the address {row.path[:80]!r}; fetch the images first, for example with img2dataset, "
            "and name local files or use its tar shards."
        )
    path = files.beside(table, row.path if store.is_address(table) else os.path.expanduser(row.path))
    return path if store.is_address(path) else os.path.normpath(path)


def _spelled(path: str) -> str:
    """The path as the disk spells it: a table from a Mac may write é as two characters."""
    if path.isascii() or store.is_address(path) or os.path.lexists(path):
        return path
    others = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((other for other in others if os.path.lexists(other)), path)


def open_csv(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens ``.csv`` or ``.tsv`` files with a header, see :data:`SEPARATORS`; ``?separator=`` names another one."""
    return _open("csv", _csv_rows, (".csv", ".tsv"), rest, split, holdout=holdout, seed=seed)


def open_jsonl(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens files with one JSON object a line, or a list of them, whose captions are a text or a list of texts."""
    return _open("jsonl", _json_rows, (".jsonl",), rest, split, holdout=holdout, seed=seed)


def _open(kind: str, rows: Rows, suffixes: tuple[str, ...], rest: str, split: str, **options: Any) -> Source:
    """Files of a folder named ``train*`` and ``val*`` are the splits, else a seeded one is made, by image."""
    pattern, named = columns.parse(kind, rest)
    make = functools.partial(PairsFile, rows=rows, named=named)
    return open_shards(kind, make, "validation files", pattern, split, suffixes=suffixes, **options)


def _columns(named: Named, there: list[str], where: str, source: str) -> dict[str, str]:
    """Kind -> the name of its column, of those that are there: images, and labels or captions.

    Raises:
      UserError: images, or both labels and captions, are missing.
    """
    try:
        found = {kind: name for kind in ("image", "label", "caption") if (name := named.find(kind, there)) is not None}
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    urls = " Addresses of images are not read; fetch them first." if "url" in [n.lower() for n in there] else ""
    if "image" not in found:
        raise UserError(f"{where} {columns.missing('image', there, source)}.{urls}")
    if len(found) == 1:
        raise UserError(
            f"{where} {columns.missing('label', there, source)}. Captions are columns called "
            f"{' or '.join(map(repr, columns.CAPTION[:4]))}."
        )
    return found


def _row(where: str, values: dict[str, Any]) -> Row:
    """What a row says; ``values`` by kind."""
    path = values["image"]
    if not isinstance(path, str):
        raise UserError(f"{where} names no image: it is {path!r:.40}.")
    try:
        return Row(where, path, as_label(values.get("label")), as_captions(values.get("caption")))
    except ValueError as e:
        raise UserError(f"{where} has the label {values['label']!r:.40}: {e}.") from None


def _csv_rows(table: str, named: Named) -> Iterator[Row]:
    first = next(text.stream(table), "")
    separator = _separator(first, named, table)
    plain = separator in "\t|" and _quotes_mean_nothing(table, separator)
    quoting: Any = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    reader = csv.reader(text.stream(table), delimiter=separator, strict=True, quoting=quoting)
    try:
        header = [name.strip() for name in next(reader, [])]
        found = _columns(named, header, table, f"csv:{table}")
        place = {kind: header.index(name) for kind, name in found.items()}
        for row in reader:
            if not row:
                continue
            where = f"line {reader.line_num} of {table}"
            if len(row) != len(header):
                raise UserError(
                    f"{where} has {len(row)} fields, but its header has {len(header)}; "
                    'put a field that holds the separator in quotes (").'
                )
            yield _row(where, {kind: row[i].strip() if kind == "image" else row[i] for kind, i in place.items()})
    except csv.Error as e:
        raise UserError(
            f'line {reader.line_num} of {table} cannot be read ({e}); close every quote (") and double those in a text.'
        ) from None


def _separator(header: str, named: Named, table: str) -> str:
    if named.separator is None:
        bare = re.sub(r'"[^"]*"', "", header)
        return next((s for s in SEPARATORS if s in bare), ",")
    separator = {"tab": "\t"}.get(named.separator, named.separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f"the separator {named.separator!r} of {table} is not one character; a tab is written 'tab'.")
    return separator


def _quotes_mean_nothing(table: str, separator: str) -> bool:
    """Whether each line has all fields as it stands, and one holds a quote that is none: ``"Big" cat of 5" length``."""
    odd, count = False, None
    for line in text.stream(table):
        fields = line.rstrip("\r\n").split(separator)
        if fields == [""]:
            continue
        count = count or len(fields)
        if len(fields) != count:
            return False
        odd = odd or any(f.startswith('"') and not re.fullmatch(r'"(?:[^"]|"")*"', f) for f in fields)
    return odd


def _json_rows(table: str, named: Named) -> Iterator[Row]:
    for number, value in _objects(table):
        where = f"line {number} of {table}"
        if not isinstance(value, dict):
            raise UserError(f"{where} holds a JSON {type(value).__name__}; write one object a line.")
        found = _columns(named, list(value), where, f"jsonl:{table}")
        yield _row(where, {kind: value[name] for kind, name in found.items()})


def _objects(table: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line, or of a list over several lines."""
    for number, line in enumerate(text.stream(table), 1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            whole = jsonfile.parse(text.read(table, errors="surrogateescape"), list, f"line 1 of {table}", _LINES)
            yield from enumerate(whole, 1)
            return
        yield number, jsonfile.parse(line, dict, f"line {number} of {table}", _LINES)


_LINES = "; write one object a line"
