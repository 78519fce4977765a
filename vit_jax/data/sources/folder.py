"""``folder:PATH``: one sub-folder per class, optionally below ``train/`` and ``val/``."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources.base import Info, Record, Source, Strings, Unreadable, align, digest, take_split
from vit_jax.types import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VAL_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = ("train", "test", *VAL_NAMES)


class Folder:
    """Images of ``root/class/**``: classes are the sorted folder names, examples are in the canonical order.

    The canonical order of ``folder:`` and ``tar:`` is (class, path within the class without its suffix), compared as
    bytes, so the same images have the same index, split and training order however they are packed.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        names, parts, counts, others, empty = [], [], [], [], []
        for name in _sub_folders(root):
            images, rest = _list_images(root / name)
            others += [f"{name}/{path}" for path in rest]
            if images:
                names.append(name)
                parts.append(Strings.pack(images))
                counts.append(len(images))
            else:
                empty.append(name)
        if not names:
            raise UserError(_nothing(root))
        self.paths = Strings.concatenate(parts)
        self.labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
        notes, known = _notes(root, others, empty), digest(names, self.paths, self.labels)
        self.info = Info(tuple(names), len(self.labels), notes, digest=known)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        label = int(self.labels[i])
        path = f"{self.root}/{self.info.class_names[label]}/{self.paths[i]}"
        try:
            with open(path, "rb", buffering=0) as f:
                return {"image": f.read(), "label": label, "name": path}
        except OSError as e:
            raise Unreadable(f"the image {path} cannot be read ({e.strerror})") from None


def canonical_key(path: str) -> tuple[bytes, bytes]:
    """What examples of one class are sorted by: the path without its last suffix, then the whole path."""
    whole = path.encode("utf-8", "surrogateescape")
    folder, slash, base = whole.rpartition(b"/")
    return folder + slash + (base.rpartition(b".")[0] or base), whole


def open_folder(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens ``train/`` or ``val/`` below ``rest`` if they are there, else a seeded split of all images."""
    root = pathlib.Path(rest).expanduser()
    if not rest or not root.is_dir():
        raise UserError(missing_path("folder", rest, "folder"))
    if not _has_split_folders(root):
        folder = Folder(root)
        return take_split(folder, folder.labels, split, holdout, seed, f"folder:{rest}")
    train = Folder(root / "train")
    val = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    if val is None:
        return take_split(train, train.labels, split, holdout, seed, f"folder:{rest}/train")
    return train if split == "train" else align(Folder(val), train.info.class_names, f"folder {val}")


def missing_path(kind: str, path: str, what: str) -> str:
    """The sentence for a path that is not there, with the nearest names beside it."""
    p = pathlib.Path(path).expanduser()
    if not path:
        return f"'{kind}:' lacks its path; write '{kind}:PATH'."
    if p.exists():
        return f"'{kind}:{path}' is not a {what}."
    there = [str(q) for q in p.parent.iterdir()] if p.parent.is_dir() else []
    return f"'{kind}:{path}' does not exist{suggest(str(p), there) if there else '.'}"


def _has_split_folders(root: pathlib.Path) -> bool:
    """True for ``train/<class>/…`` beside nothing but other splits: 'train' is also the name of a vehicle."""
    names = _sub_folders(root)
    return "train" in names and set(names) <= set(SPLIT_NAMES) and bool(_sub_folders(root / "train"))


def _sub_folders(root: pathlib.Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=os.fsencode)


def _list_images(root: pathlib.Path) -> tuple[list[str], list[str]]:
    """Relative paths of the images below ``root``, in canonical order, and of other files; hidden ones are neither."""
    images: list[str] = []
    others: list[str] = []
    for folder, subs, files in os.walk(root):
        subs[:] = [s for s in subs if not s.startswith(".")]
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        for file in files:
            if not file.startswith("."):
                (images if file.lower().endswith(IMAGE_SUFFIXES) else others).append(prefix + file)
    return sorted(images, key=canonical_key), others


def _notes(root: pathlib.Path, others: list[str], empty: list[str]) -> tuple[str, ...]:
    notes = []
    if others:
        notes.append(f"{len(others)} files in {root} are no images and were left out (first: {min(others)}).")
    if empty:
        notes.append(f"{len(empty)} folders in {root} hold no images and are no classes (first: {empty[0]}).")
    return tuple(notes)


def _nothing(root: pathlib.Path) -> str:
    wanted = f"put images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}) in one sub-folder per class."
    if any(f.lower().endswith(IMAGE_SUFFIXES) for f in os.listdir(root)):
        return f"the images in {root} have no class: {wanted}"
    return f"no images in {root}: {wanted}"
