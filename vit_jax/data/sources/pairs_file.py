"""``csv:PATTERN`` and ``jsonl:PATTERN``: tables of local image files and their captions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources.base import Info, Record, Source, Strings, Unreadable, as_captions, digest, take_split
from vit_jax.data.sources.shards import find_shards
from vit_jax.io import jsonfile
from vit_jax.types import UserError

PATH_COLUMNS = ("filepath", "path", "image", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")

Rows = Iterator[tuple[int, str, tuple[str, ...]]]
"""(line number, path as written, captions)."""


class PairsFile:
    """The images of some tables in the order of first appearance; several rows of an image are several captions of it.

    Relative paths start at the folder of their table. Images are opened when they are read, not before.
    """

    def __init__(self, tables: list[str], rows: Callable[[str], Rows]):
        captions: dict[str, tuple[str, ...]] = {}
        for table in tables:
            folder = os.path.dirname(os.path.abspath(table))
            for line, path, texts in rows(table):
                if not path:
                    raise UserError(f"line {line} of {table} names no image.")
                if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
                    raise UserError(
                        f"line {line} of {table} names the address {path[:80]!r}; fetch the images first, for example "
                        "with img2dataset, and name local files or use its tar shards."
                    )
                image = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
                captions[image] = captions.get(image, ()) + texts
        if not captions:
            raise UserError(f"no rows in {tables[0]}.")
        self.paths = Strings.pack(list(captions))
        self.captions = Strings.pack([text for texts in captions.values() for text in texts])
        counts = np.fromiter(map(len, captions.values()), np.int64, len(captions))
        self.ends = np.cumsum(counts)
        moved = len(os.path.commonpath([min(captions), max(captions)]))  # where the files lie does not matter
        known = digest([path[moved:] for path in captions], self.captions, self.ends)
        self.info = Info((), len(captions), captions=max(1, int(counts.max())), digest=known)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Record:
        path = self.paths[i]
        first, last = (int(self.ends[i - 1]) if i else 0), int(self.ends[i])
        try:
            with open(path, "rb", buffering=0) as f:
                image = f.read()
        except (OSError, ValueError) as e:  # ValueError: a path with a null character
            raise Unreadable(f"the image {path} cannot be read ({getattr(e, 'strerror', None) or e})") from None
        captions = tuple(self.captions[k] for k in range(first, last))
        return {"image": image, "label": 0, "name": path, "captions": captions}


def open_csv(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens ``.csv`` or ``.tsv`` files with a header; tabs separate the columns if the header has one, else commas."""
    return _open("csv", rest, (".csv", ".tsv"), _csv_rows, split, holdout, seed)


def open_jsonl(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens files with one JSON object a line, whose captions are a text or a list of texts."""
    return _open("jsonl", rest, (".jsonl",), _json_rows, split, holdout, seed)


def _open(
    kind: str, rest: str, suffixes: tuple[str, ...], rows: Callable[[str], Rows], split: str, holdout: Any, seed: int
) -> Source:
    """Files of a folder named ``train*`` and ``val*`` are the splits, else a seeded one is made, by image."""
    tables, is_split = find_shards(kind, rest, suffixes, split)
    pairs = PairsFile(tables, rows)
    if is_split:
        return pairs
    return take_split(pairs, np.zeros(len(pairs), np.int32), split, holdout, seed, f"{kind}:{rest}")


def _csv_rows(table: str) -> Rows:
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
        first = f.readline()
        f.seek(0)
        reader = csv.reader(f, delimiter="\t" if "\t" in first else ",", strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            path, caption = (_column(header, names, table) for names in (PATH_COLUMNS, CAPTION_COLUMNS))
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"line {reader.line_num} of {table} has {len(row)} fields, but its header has {len(header)}; "
                        'put a field that holds the separator in quotes (").'
                    )
                yield reader.line_num, row[header.index(path)], as_captions(row[header.index(caption)])
        except csv.Error as e:
            raise UserError(
                f"line {reader.line_num} of {table} cannot be read ({e}); "
                'close every quote (") and double those in a text.'
            ) from None


def _json_rows(table: str) -> Rows:
    with open(table, encoding="utf-8-sig", errors="surrogateescape") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"line {number} of {table}"
            row = jsonfile.parse(line, dict, where, "; write one object a line")
            path, caption = (_column(list(row), names, where) for names in _JSON_COLUMNS)
            if not isinstance(row[path], str):
                raise UserError(f"{where} names no image: its {path!r} is {row[path]!r:.40}.")
            yield number, row[path], as_captions(row[caption])


_JSON_COLUMNS = (PATH_COLUMNS, CAPTION_COLUMNS)


def _column(there: list[str], allowed: tuple[str, ...], where: str) -> str:
    found = next((name for name in allowed if name in there), None)
    if found is None:
        wanted = ", ".join(map(repr, allowed))
        urls = " Addresses of images are not read; fetch them first." if "url" in there else ""
        raise UserError(f"{where} has no column {wanted}{suggest(allowed[0], there)}{urls}")
    return found
