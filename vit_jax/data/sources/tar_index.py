"""The index of one tar shard: where its images and captions lie and what its labels say, read once and cached.

The cache (:mod:`vit_jax.io.cache`) is keyed by path, size and time of change, and holds plain arrays only.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import tarfile
import zipfile
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.sources.base import Strings
from vit_jax.data.sources.splits import of as split_of
from vit_jax.data.sources.tar_members import (
    LABEL_SUFFIXES,
    MEMBER_BYTES,
    is_file,
    is_json,
    members,
    parse_captions,
    parse_label,
)
from vit_jax.io import atomic, cache, files, store
from vit_jax.io.images import SUFFIXES
from vit_jax.types import UserError

log = logging.getLogger(__name__)

_VERSION = 3
AT_A_TIME = 16
"""Shards at addresses whose headers are asked for at the same time."""
INDEXES = 2 * 10**9
"""Bytes of indexes that are kept."""


class ShardIndex(NamedTuple):
    """Images of one shard in the order stored, as arrays.

    ``code`` points into the distinct labels ``numbers`` (-1: not given) and ``classes`` ("": not given); a shard of
    captions has none of them, and ``code`` is -1. ``text_`` arrays say where each image's captions are written, as JSON
    or as lines of plain text; they are empty unless all images have captions, of which ``captions`` is the most.
    """

    names: Strings
    offset: np.ndarray  # int64[N]
    size: np.ndarray  # int64[N]
    code: np.ndarray  # int32[N]
    numbers: np.ndarray  # int64[U]
    classes: Strings
    text_offset: np.ndarray  # int64[N or 0]
    text_size: np.ndarray  # int32[N or 0]
    text_json: np.ndarray  # bool[N or 0]
    captions: int
    others: int
    lone_images: int
    lone_texts: int


class _Text(NamedTuple):
    offset: int
    size: int
    is_json: bool
    captions: int


def load_indexes(paths: list[str]) -> list[ShardIndex]:
    """See :func:`load_index`; those at addresses several at a time, as headers are asked for one after the other."""
    if not any(map(store.is_address, paths)):
        return [load_index(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(load_index, paths))


def load_index(path: str) -> ShardIndex:
    """The index of a shard, from the cache if the file has not changed since.

    Raises:
      UserError: the file is empty, truncated, compressed or no tar; a label is missing or cannot be read.
    """
    try:
        version, size = files.version(path)
    except OSError as e:
        raise UserError(f"the tar file {path} cannot be read ({e.strerror}).") from e
    if size == 0:
        raise UserError(f"the tar file {path} is empty (0 bytes); fetch or write it again.")
    if not version:
        return build_index(path)
    identity = f"{_VERSION}|{version}"
    cached = cache.folder() / f"tar-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    try:
        with open(cached, "rb") as f, np.load(f, allow_pickle=False) as z:
            index = ShardIndex(**{name: _loaded(z, name) for name in ShardIndex._fields})
        cache.used(cached)
        return index
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = build_index(path)  # absent, or damaged: made anew
    _save(index, cached)
    return index


def build_index(path: str) -> ShardIndex:
    """Reads the headers, labels and captions of a shard, see :func:`load_index`."""
    images: list[tuple[str, int, int]] = []
    links: list[tuple[str, str]] = []  # of images: name -> what it leads to
    labels: dict[str, tuple[int, str]] = {}
    texts: dict[str, _Text] = {}  # of images, by stem; JSON with captions goes before plain text
    plain: set[str] = set()
    broken: dict[str, _Text] = {}  # JSON that cannot be parsed
    errors: list[tuple[UserError, bool]] = []
    once = _Once(path)
    others = 0
    with files.open_regular(path) as file:
        for member, content in members(path, file):
            name = member.name.removeprefix("./")
            stem, suffix = os.path.splitext(name)
            suffix = suffix.lower()
            text = _Text(member.offset_data, min(member.size, MEMBER_BYTES), suffix == ".json", 1)
            hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
            if not hidden and suffix in SUFFIXES and (member.islnk() or member.issym()):
                links.append((once(name), _target(name, member)))
            elif hidden or not is_file(member):
                others += 1
            elif suffix in SUFFIXES:
                images.append((once(name), member.offset_data, member.size))
            elif suffix == ".txt":
                plain.add(once(stem, ".txt"))
                texts.setdefault(stem, text._replace(captions=len(parse_captions(content, False) or ())))
            elif suffix in LABEL_SUFFIXES:
                once(stem, suffix)
                if suffix == ".json" and (captions := parse_captions(content, True)) is not None:
                    texts[stem] = text._replace(captions=len(captions))
                try:
                    if (label := parse_label(content, suffix, f"{name} in {path}")) is not None:
                        labels[stem] = _both(labels.get(stem, label), label, name, path)
                except UserError as e:
                    errors.append((e, suffix == ".json" and not is_json(content)))
                    if errors[-1][1]:
                        broken[stem] = text
            else:
                others += 1
    found, lost = _resolved(images, links)
    images, others = images + found, others + lost
    stems = {os.path.splitext(name)[0] for name, _, _ in images}
    captioned = not labels and not stems.isdisjoint(texts)
    for error, is_broken in errors:
        if not (captioned and is_broken):
            raise error
    if captioned:  # and where JSON is broken, one image is without a caption
        return _assemble_captions(images, texts | broken, others)
    if not labels:
        labels = _labels_from_folders([name for name, _, _ in images], path)
    index = _assemble(images, labels, others, path)
    complete = _with_texts(index, texts)
    return complete._replace(others=complete.others + len(plain - stems if complete.captions else plain))


class _Once:
    """Passes each name on once: members are put together by their names."""

    def __init__(self, path: str):
        self.path, self.seen = path, set[str]()

    def __call__(self, stem: str, suffix: str = "") -> str:
        if (name := stem + suffix) in self.seen:
            raise UserError(
                f"the tar file {self.path} holds {name} twice, so labels cannot be told apart; write it again, each "
                "name once ('tar -r' and '-u' append)."
            )
        self.seen.add(name)
        return stem


def _both(first: tuple[int, str], second: tuple[int, str], name: str, path: str) -> tuple[int, str]:
    """What .cls and .json say together: a number, a class name, or both."""
    for a, b in zip(first, second, strict=True):
        if a != b and -1 not in (a, b) and "" not in (a, b):
            raise UserError(f"the label of {name} in {path} is {b!r}, another file beside the image says {a!r}.")
    return max(first[0], second[0]), first[1] or second[1]


def _target(name: str, link: tarfile.TarInfo) -> str:
    """The member that a link means: a hard link by its name in the archive, a symbolic one from its own folder."""
    start = os.path.dirname(name) if link.issym() else ""
    return os.path.normpath(os.path.join(start, link.linkname))


def _resolved(images: list, links: list[tuple[str, str]]) -> tuple[list[tuple[str, int, int]], int]:
    """Links to images as images, and how many lead to none."""
    places = {os.path.normpath(name): (offset, size) for name, offset, size in images} if links else {}
    found = [(name, *places[target]) for name, target in links if target in places]
    return found, len(links) - len(found)


def _labels_from_folders(names: list[str], path: str) -> dict[str, tuple[int, str]]:
    """Without any label member, a class per folder like ``folder:``; a common folder above the classes is ignored."""
    if not names:
        raise UserError(f"no images in the tar file {path}; expected x.jpg with x.cls or x.json.")
    parents = [name.split("/")[:-1] for name in names]
    first, last = min(parents), max(parents)  # what these two share, all share
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if any(len(p) <= depth for p in parents):
        raise UserError(
            f"the image {names[0]} in {path} has no label; expected a member with suffix .cls or .json, or .txt with "
            "its caption."
        )
    if all(split_of(name) for name in {p[depth] for p in parents}):
        raise UserError(
            f"the tar file {path} holds several splits ({parents[0][depth]}, ...); write one tar per split."
        )
    return {os.path.splitext(n)[0]: (-1, p[depth]) for n, p in zip(names, parents, strict=True)}


def _assemble(images: list, labels: dict[str, tuple[int, str]], others: int, path: str) -> ShardIndex:
    distinct: dict[tuple[int, str], int] = {}
    kept, code = [], []
    for image in images:
        stem = os.path.splitext(image[0])[0]
        if stem not in labels:
            folder, slash, base = stem.rpartition("/")
            if folder + slash + base.partition(".")[0] in labels:  # x.mask.png beside x.jpg: another field of x
                others += 1
                continue
            raise UserError(
                f"the image {image[0]} in {path} has no label; expected {stem}.cls or {stem}.json beside it."
            )
        kept.append(image)
        code.append(distinct.setdefault(labels[stem], len(distinct)))
    return _index(kept, np.array(code, np.int32), distinct, others)


def _assemble_captions(images: list, texts: dict[str, _Text], others: int) -> ShardIndex:
    """The images that have captions; images and captions without their partner are counted."""
    kept, lone = [], 0
    for image in images:
        stem = os.path.splitext(image[0])[0]
        folder, slash, base = stem.rpartition("/")
        if stem in texts:
            kept.append(image)
        elif folder + slash + base.partition(".")[0] in texts:
            others += 1
        else:
            lone += 1
    lone_texts = len(texts.keys() - {os.path.splitext(name)[0] for name, _, _ in kept})
    index = _index(kept, np.full(len(kept), -1, np.int32), {}, others)
    return _with_texts(index, texts)._replace(lone_images=lone, lone_texts=lone_texts)


def _index(images: list, code: np.ndarray, distinct: dict[tuple[int, str], int], others: int) -> ShardIndex:
    """Without captions."""
    return ShardIndex(
        names=Strings.pack([name for name, _, _ in images]),
        offset=np.array([offset for _, offset, _ in images], np.int64),
        size=np.array([size for _, _, size in images], np.int64),
        code=code,
        numbers=np.array([number for number, _ in distinct], np.int64),
        classes=Strings.pack([name for _, name in distinct]),
        text_offset=np.zeros(0, np.int64),
        text_size=np.zeros(0, np.int32),
        text_json=np.zeros(0, bool),
        captions=0,
        others=others,
        lone_images=0,
        lone_texts=0,
    )


def _with_texts(index: ShardIndex, texts: dict[str, _Text]) -> ShardIndex:
    """``index`` with its images' captions, if all of them have some."""
    stems = [os.path.splitext(name)[0] for name in index.names]
    if not all(stem in texts for stem in stems):
        return index
    found = [texts[stem] for stem in stems]
    return index._replace(
        text_offset=np.array([t.offset for t in found], np.int64),
        text_size=np.array([t.size for t in found], np.int32),
        text_json=np.array([t.is_json for t in found], bool),
        captions=max([1, *(t.captions for t in found)]),
    )


def _loaded(z: Any, name: str) -> Any:
    if f"{name}_ends" in z:
        return Strings(z[name], z[f"{name}_ends"])
    return z[name] if z[name].ndim else int(z[name])


def _save(index: ShardIndex, path: pathlib.Path) -> None:
    arrays: dict[str, Any] = {}
    for name, value in index._asdict().items():
        arrays |= {name: value.blob, f"{name}_ends": value.ends} if isinstance(value, Strings) else {name: value}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path) as new:
            np.savez(new, allow_pickle=False, **arrays)
        cache.trim(path.parent, "tar-*.npz", INDEXES)
    except OSError as e:
        log.warning("the index of a tar cannot be kept (%s: %s); it is made anew at every start.", path, e.strerror)
