"""The index of one tar shard: where its images lie and what their labels say, read once and cached.

The cache (``$XDG_CACHE_HOME/vit_jax``, by default ``~/.cache/vit_jax``) is keyed by path, size and time of change; it
is written under a temporary name and renamed, and holds plain arrays only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from vit_jax.data.sources.base import MAX_CLASSES, Strings
from vit_jax.data.sources.folder import IMAGE_SUFFIXES, SPLIT_NAMES
from vit_jax.types import UserError

log = logging.getLogger(__name__)

_VERSION = 1
_LABEL_SUFFIXES = (".cls", ".json")
_LABEL_BYTES = 2**20


class ShardIndex(NamedTuple):
    """Images of one shard in the order stored, as arrays.

    ``code`` points into the distinct labels ``numbers`` (-1: not given) and ``classes`` ("": not given).
    """

    names: Strings
    offset: np.ndarray  # int64[N]
    size: np.ndarray  # int64[N]
    code: np.ndarray  # int32[N]
    numbers: np.ndarray  # int64[U]
    classes: Strings
    others: int


def load_index(path: str) -> ShardIndex:
    """The index of a shard, from the cache if the file has not changed since.

    Raises:
      UserError: the file is empty, truncated, compressed or no tar; a label is missing or cannot be read.
    """
    stat = os.stat(path)
    identity = f"{_VERSION}|{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"
    cached = _cache_folder() / f"tar-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    try:
        with open(cached, "rb") as f, np.load(f, allow_pickle=False) as z:
            names, classes = Strings(z["names"], z["name_ends"]), Strings(z["classes"], z["class_ends"])
            return ShardIndex(names, z["offset"], z["size"], z["code"], z["numbers"], classes, int(z["others"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = build_index(path)  # absent, or damaged: made anew
    _save(index, cached)
    return index


def build_index(path: str) -> ShardIndex:
    """Reads the headers and labels of a shard, see :func:`load_index`."""
    if os.path.getsize(path) == 0:
        raise UserError(f"the tar file {path} is empty (0 bytes); fetch or write it again.")
    images: list[tuple[str, int, int]] = []
    labels: dict[str, tuple[int, str]] = {}
    others = 0
    with open(path, "rb") as file:
        for member, content in _members(path, file):
            stem, suffix = os.path.splitext(member.name.removeprefix("./"))
            if os.path.basename(stem).startswith("."):
                continue
            if suffix.lower() in IMAGE_SUFFIXES:
                images.append((stem + suffix, member.offset_data, member.size))
            elif suffix.lower() in _LABEL_SUFFIXES:
                if (label := parse_label(content, suffix.lower(), f"{member.name} in {path}")) is not None:
                    labels[stem] = label
            else:
                others += 1
    if not labels:
        labels = _labels_from_folders([name for name, _, _ in images], path)
    return _assemble(images, labels, others, path)


def _members(path: str, file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """(header, content if perhaps a label) of each regular member; notices an early end, unlike ``tarfile`` alone."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.isreg():
                    is_label = member.name.lower().endswith(_LABEL_SUFFIXES)
                    yield member, archive.extractfile(member).read(_LABEL_BYTES) if is_label else b""  # type: ignore
                archive.members.clear()  # type: ignore[attr-defined]  # or it would hold every header
            end = archive.offset
        file.seek(end)
        tail = file.read(512)
        if tail == bytes(512):
            while tail and not any(tail):
                tail = file.read(2**20)
            if not tail:
                return
            reason = "has data after its end mark; join archives with 'tar --concatenate', not with 'cat'"
        else:
            reason = "is truncated: its end mark is missing; fetch or write it again"
    except (tarfile.TarError, EOFError) as e:
        file.seek(0)
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        if packed:
            reason = "is compressed, which allows no random access; decompress it (images do not shrink anyway)"
        else:
            reason = f"is truncated or no tar file ({e}); fetch or write it again"
    raise UserError(f"the tar file {path} {reason}.")


def parse_label(data: bytes, suffix: str, name: str) -> tuple[int, str] | None:
    """(number or -1, class name or "") of a ``.cls`` or ``.json`` member; None for JSON that holds no label.

    ``.cls`` holds a number or a class name; JSON ``label`` or ``cls``, either kind, maybe with the name as ``class``.
    """
    class_name = ""
    try:
        value: Any = data.decode().strip()
        if suffix == ".json":
            value = json.loads(value)
            if isinstance(value, dict):
                class_name = str(value.get("class", ""))
                value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
                if value is None:
                    return None
    except (UnicodeDecodeError, json.JSONDecodeError):
        value = None
    if isinstance(value, str) and re.fullmatch("-?[0-9]+", value):
        value = int(value)
    if isinstance(value, str) and value:
        return -1, value
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"the label {data[:40]!r} of {name} is neither a number nor a class name.")
    if not 0 <= value < MAX_CLASSES:
        raise UserError(f"the label {value} of {name} is outside 0..{MAX_CLASSES - 1}.")
    return value, class_name


def _labels_from_folders(names: list[str], path: str) -> dict[str, tuple[int, str]]:
    """Without any label member, a class per folder like ``folder:``; a common folder above the classes is ignored."""
    if not names:
        raise UserError(f"no images in the tar file {path}; expected x.jpg with x.cls or x.json.")
    parents = [name.split("/")[:-1] for name in names]
    first, last = min(parents), max(parents)  # what these two share, all share
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if any(len(p) <= depth for p in parents):
        raise UserError(f"the image {names[0]} in {path} has no label; expected a member with suffix .cls or .json.")
    if {p[depth] for p in parents} <= set(SPLIT_NAMES):
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
    return ShardIndex(
        Strings.pack([name for name, _, _ in kept]),
        np.array([offset for _, offset, _ in kept], np.int64),
        np.array([size for _, _, size in kept], np.int64),
        np.array(code, np.int32),
        np.array([number for number, _ in distinct], np.int64),
        Strings.pack([name for _, name in distinct]),
        others,
    )


def _cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax"


def _save(index: ShardIndex, path: pathlib.Path) -> None:
    arrays: dict[str, Any] = {
        "names": index.names.blob,
        "name_ends": index.names.ends,
        "offset": index.offset,
        "size": index.size,
        "code": index.code,
        "numbers": index.numbers,
        "classes": index.classes.blob,
        "class_ends": index.classes.ends,
        "others": np.int64(index.others),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as f:
            try:
                np.savez(f, allow_pickle=False, **arrays)
                f.flush()
                os.replace(f.name, path)
            except BaseException:
                os.unlink(f.name)
                raise
    except OSError as e:
        log.warning("the index of a tar cannot be kept (%s: %s); it is made anew at every start.", path, e.strerror)
