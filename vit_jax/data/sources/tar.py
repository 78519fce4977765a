"""``tar:PATTERN``: WebDataset-style shards, read at random through an index.

Beside ``x.jpg`` lies its class (``x.cls``, or ``x.json`` with ``label``), its captions (``x.txt``, one a line, or
``x.json`` with ``caption``, ``captions`` or ``text``), or both.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import tarfile
from typing import Any

import numpy as np

from vit_jax.data.sources.base import Info, Record, Source, Strings, Unreadable, digest
from vit_jax.data.sources.folder import canonical_key
from vit_jax.data.sources.shards import open_shards
from vit_jax.data.sources.tar_index import ShardIndex, load_indexes
from vit_jax.data.sources.tar_members import parse_captions
from vit_jax.io import atomic, files, text
from vit_jax.types import UserError


class Tar:
    """All images of some shards in canonical order, (label, path without its suffix): see :class:`.folder.Folder`."""

    def __init__(self, paths: list[str]):
        shards = load_indexes(paths)
        class_names, tables = _merge_labels(shards, paths)
        labels = np.concatenate([table[shard.code] for shard, table in zip(shards, tables, strict=True)])
        names = Strings.concatenate([shard.names for shard in shards])
        order = _canonical_order(labels, names)
        self.paths = paths
        self.names = names.take(order)
        self.labels = labels[order]
        self.shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(s.code) for s in shards])[order]
        self.offset = np.concatenate([s.offset for s in shards])[order]
        self.size = np.concatenate([s.size for s in shards])[order]
        captions = max(s.captions for s in shards) if all(s.captions for s in shards) else 0
        if captions:
            self.text_offset = np.concatenate([s.text_offset for s in shards])[order]
            self.text_size = np.concatenate([s.text_size for s in shards])[order]
            self.text_json = np.concatenate([s.text_json for s in shards])[order]
        known = digest(class_names, self.names, self.labels, self.size, *([self.text_size] if captions else []))
        self.info = Info(class_names, len(order), _notes(shards, paths), captions, digest=known)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        path = self.paths[self.shard[i]]
        name = f"{self.names[i]} in {path}"
        places = [(int(self.offset[i]), int(self.size[i]))]
        if self.info.captions:
            places.append((int(self.text_offset[i]), int(self.text_size[i])))
        image, *texts = _read(path, places, name)
        record: Record = {"image": image, "label": int(self.labels[i]), "name": name}
        for found in texts:
            record["captions"] = parse_captions(found, bool(self.text_json[i])) or ()
        return record


def _read(path: str, places: list[tuple[int, int]], name: str) -> list[bytes]:
    """The bytes at each (offset, size)."""
    try:  # opened each time: a few microseconds, and nothing to share among threads, pickle or close
        found = files.ranges(path, places)
    except OSError as e:
        raise Unreadable(f"the image {name} cannot be read ({e.strerror})") from None
    for data, (_, size) in zip(found, places, strict=True):
        if len(data) != size:
            raise UserError(f"the tar file {path} changed while in use: {name} has {len(data)} of {size} bytes.")
    return found


def _notes(shards: list[ShardIndex], paths: list[str]) -> tuple[str, ...]:
    where = f"{paths[0]}{' and others' * (len(paths) > 1)}"
    counts = [sum(getattr(s, field) for s in shards) for field in ("others", "lone_images", "lone_texts")]
    phrases = ("members of {} are no images or hidden", "images of {} have no caption", "captions of {} have no image")
    sentences = zip(counts, phrases, strict=True)
    return tuple(f"{count} {phrase.format(where)} and were left out." for count, phrase in sentences if count)


def open_tar(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens shards by pattern; a folder with ``train*.tar`` and ``val*.tar`` is split by name, else by seed."""
    return open_shards("tar", Tar, "val shards", rest, split, holdout=holdout, seed=seed)


def write_tar(source: Source, pattern: str, *, shard_size: int = 10_000) -> list[str]:
    """Packs a source into shards that read back with the same classes, captions, order and bytes.

    Members are numbered in the source's order; arrays are stored as PNG.

    Args:
      source: what to pack.
      pattern: path with a field for the number of the shard, such as ``"/d/train-{:05d}.tar"``.
      shard_size: examples a shard.

    Returns:
      The paths written: all of them, or none.

    Raises:
      UserError: a file exists, cannot be written, or would be written twice; an example cannot be read.
    """
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size} is not allowed; a shard has 1 example or more.")
    starts = range(0, len(source), shard_size)
    paths = _shard_names(pattern, len(starts))
    try:
        with contextlib.ExitStack() as stack:
            new = [stack.enter_context(atomic.new_file(pathlib.Path(path))) for path in paths]
            for file, start in zip(new, starts, strict=True):
                _write_shard(source, file, range(start, min(start + shard_size, len(source))))
    except OSError as e:
        raise UserError(f"the shards {pattern!r} cannot be written ({e.strerror or e}); choose another place.") from e
    return paths


def _shard_names(pattern: str, count: int) -> list[str]:
    """The name of each shard; only a plain field for its number has a meaning in ``pattern``."""
    pieces = re.split(r"\{(?::(0?[0-9]{0,2})d?)?\}", pattern)
    if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
        raise UserError(f"{pattern!r} is no pattern of shards; write the field for the number as {{:05d}}.")
    if count > 1 and len(pieces) == 1:
        stem, suffix = os.path.splitext(pattern)
        raise UserError(
            f"{pattern!r} has no field for the number of the shard, and there are {count:,}; write "
            f"{stem + '-{:05d}' + suffix!r}, or raise --shard_size."
        )
    fields = "".join(a if i % 2 == 0 else f"{{:{a or ''}}}" for i, a in enumerate(pieces))
    paths = [fields.format(*[k] * len(pieces)) for k in range(count)]
    folder = os.path.dirname(os.path.abspath(paths[0]))
    if not os.path.isdir(folder):
        raise UserError(f"{pattern!r} cannot be written; there is no folder {folder!r}.")
    if there := [path for path in paths if os.path.lexists(path)]:
        raise UserError(f"{there[0]!r} exists; remove it or name other files.")
    return paths


def _write_shard(source: Source, file: pathlib.Path, rows: range) -> None:
    from PIL import Image

    with tarfile.open(file, "w") as archive:
        for i in rows:
            record = source[i]
            data, suffix = record["image"], _suffix(record["image"])
            if isinstance(data, np.ndarray):
                buffer = io.BytesIO()
                Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).save(buffer, "PNG")
                data = buffer.getvalue()
            about = json.dumps(_about(record, source.info)).encode()
            for member, content in ((f"{i:09d}{suffix}", data), (f"{i:09d}.json", about)):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def _about(record: Record, info: Info) -> dict[str, Any]:
    classes = info.class_names
    about: dict[str, Any] = {"label": record["label"], "class": classes[record["label"]]} if classes else {}
    return about | ({"captions": record.get("captions", ())} if info.captions else {})


def _suffix(image: bytes | np.ndarray) -> str:
    if isinstance(image, np.ndarray) or image[:4] == b"\x89PNG":
        return ".png"
    if image[4:8] == b"ftyp":
        return ".avif" if image[8:12] in (b"avif", b"avis") else ".heic"
    return {b"RI": ".webp", b"BM": ".bmp", b"GI": ".gif", b"II": ".tif", b"MM": ".tif"}.get(image[:2], ".jpg")


def _merge_labels(shards: list[ShardIndex], paths: list[str]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names of all shards, and per shard the label of each of its distinct labels."""
    with_classes = [path for path, s in zip(paths, shards, strict=True) if len(s.numbers)]
    if not with_classes and any(len(s.code) for s in shards):
        return (), [np.zeros(1, np.int32)] * len(shards)  # captions only: code is -1
    without = [path for path in paths if path not in with_classes]
    if with_classes and without:
        raise UserError(
            f"the images of {with_classes[0]} have classes, those of {without[0]} have captions only; open them apart, "
            "or together with 'mix:'."
        )
    numbered: dict[int, str] = {}
    named: set[str] = set()
    for shard, path in zip(shards, paths, strict=True):
        for number, name in zip(shard.numbers.tolist(), shard.classes, strict=True):
            if number < 0:
                named.add(name)
            elif numbered.setdefault(number, name) != name:
                raise UserError(f"label {number} is class {numbered[number]!r} and also {name!r} in {path}.")
    if named and numbered:
        raise UserError(
            f"labels are numbers ({min(numbered)}) and class names ({min(named)!r}) in {paths[0]}; write one kind only."
        )
    if not named and not numbered:
        raise UserError(f"no images in {paths[0]}; expected x.jpg with x.cls, x.json or x.txt.")
    if named:
        names = tuple(sorted(named, key=text.encode))
        rank = {name: i for i, name in enumerate(names)}
        return names, [np.array([rank[n] for n in s.classes], np.int32) for s in shards]
    names = tuple(numbered.get(i) or str(i) for i in range(max(numbered) + 1))
    if len(set(names)) < len(names):
        raise UserError(f"two labels in {paths[0]} have the same class name.")
    return names, [s.numbers.astype(np.int32) for s in shards]


def _canonical_order(labels: np.ndarray, names: Strings) -> np.ndarray:
    """int64[N]; sorted class by class, so that only one class's names are ever Python objects."""
    order = np.argsort(labels, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        part[:] = sorted(part.tolist(), key=lambda i: canonical_key(names[i]))
    return order
