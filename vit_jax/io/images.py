"""Which files of a folder are images: one rule for training, predicting and embedding."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax.io import retry, store
from vit_jax.types import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
"""Endings of the names of images, in any case; what a file holds is told by its content."""


class Listing(NamedTuple):
    """What is in a folder, as paths relative to it with ``/``.

    Attributes:
      images: regular files with one of :data:`SUFFIXES`.
      others: what is no image: other names, pipes, devices, links that lead nowhere.
      hidden: files and folders whose names start with a dot.
      again: links to folders that were listed already, or that hold the link itself.
    """

    images: list[str]
    others: list[str]
    hidden: list[str]
    again: list[str]

    def below(self, name: str) -> Listing:
        """The same as seen from the folder that ``name`` is in."""
        return Listing(*([f"{name}/{path}" for path in part] for part in self))

    def __add__(self, other: Listing) -> Listing:  # type: ignore[override]
        return Listing(*(a + b for a, b in zip(self, other, strict=True)))

    def left_out(self, root: str | Path) -> tuple[str, ...]:
        """What is no image, a sentence each."""
        sentences = (
            (self.others, "{} files in {} are no images and were left out (first: {})."),
            (self.hidden, "{} hidden files or folders in {} were left out (first: {})."),
            (self.again, "{} links in {} lead to folders that were listed already and were left out (first: {})."),
        )
        return tuple(text.format(len(paths), root, min(paths)) for paths, text in sentences if paths)


def walk(root: str | Path, *, deep: bool = True) -> Listing:
    """What is below ``root``, in no order; links to folders are followed, each folder once.

    No file is opened, so a pipe or a device costs nothing.

    Args:
      root: a folder.
      deep: whether to enter the folders in it; else they are not mentioned.

    Raises:
      UserError: a folder cannot be listed.
    """
    found = Listing([], [], [], [])
    for kind, path in _walk(root, deep):
        found[kind].append(path)
    return found


def holds_images(root: str | Path) -> bool:
    """Whether :func:`walk` finds one; it looks no further."""
    return any(kind == _IMAGE for kind, _ in _walk(root, True))


_IMAGE, _OTHER, _HIDDEN, _AGAIN = range(4)


def _walk(root: str | Path, deep: bool) -> Iterator[tuple[int, str]]:
    """Which list of a :class:`Listing` each path belongs to."""
    root = os.fspath(root)
    seen = set() if store.is_address(root) else {_identity(str(p)) for p in Path(os.path.realpath(root)).parents}
    real, links = [""], list[str]()  # links wait, so that what is listed twice keeps its own name
    while real or links:
        below = real.pop() if real else heapq.heappop(links)
        folder = os.path.join(root, below) if below else root
        if (identity := _identity(folder)) in seen:
            yield _AGAIN, below
            continue
        seen.add(identity)
        for entry in _entries(folder):
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                yield _HIDDEN, path
            elif entry.is_dir():
                if deep:
                    heapq.heappush(links, path) if entry.is_symlink() else real.append(path)
            else:
                yield _IMAGE if entry.is_file() and entry.name.lower().endswith(SUFFIXES) else _OTHER, path


def folders(root: str | Path) -> list[str]:
    """Names of the folders in ``root``, sorted as bytes: links to folders among them, hidden ones not.

    Raises:
      UserError: it cannot be listed.
    """
    names = (e.name for e in _entries(os.fspath(root)) if e.is_dir() and not e.name.startswith("."))
    return sorted(names, key=os.fsencode)


def _identity(folder: str) -> tuple[int, int] | str:
    if store.is_address(folder):
        return folder
    try:
        found = os.stat(folder)
    except OSError as e:
        raise UserError(f"the folder {folder.rstrip('/')!r} cannot be read ({e.strerror}).") from None
    return found.st_dev, found.st_ino


def _entries(folder: str) -> Sequence[os.DirEntry[str] | store.Entry]:
    try:
        return store.entries(folder) if store.is_address(folder) else retry.retried(lambda: _scanned(folder), folder)
    except OSError as e:
        raise UserError(f"the folder {folder!r} cannot be read ({e.strerror}).") from None


def _scanned(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)
