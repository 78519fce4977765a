"""``folder:PATH``: one sub-folder per class, optionally below ``train/`` and ``val/``."""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.sources import splits
from vit_jax.data.sources.base import Info, Record, Source, Strings, align, digest, noted, read_image, take_split
from vit_jax.io import files, images, store, text
from vit_jax.io.images import Listing
from vit_jax.types import UserError


class Folder:
    """Images of ``root/class/**``: classes are the sorted folder names, examples are in the canonical order.

    The canonical order of ``folder:`` and ``tar:`` is (class, path within the class without its suffix), compared as
    bytes, so the same images have the same index, split and training order however they are packed.
    """

    def __init__(self, root: str):
        self.root = root
        names, parts, counts, empty = [], [], [], []
        rest = images.walk(root, deep=False)
        loose = rest.images
        for name in images.folders(root):
            found = images.walk(f"{root}/{name}")
            if found.images:
                names.append(name)
                parts.append(Strings.pack(sorted(found.images, key=canonical_key)))
                counts.append(len(found.images))
            else:
                empty.append(name)
            rest += found._replace(images=[]).below(name)
        notes = _notes(root, rest, loose, empty)
        if not names:
            raise UserError(f"{_nothing(root, loose)}{'; '.join(['', *notes])}")
        self.paths = Strings.concatenate(parts)
        self.labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
        known = digest(names, self.paths, self.labels)
        self.info = Info(tuple(names), len(self.labels), notes, digest=known)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        label = int(self.labels[i])
        path = f"{self.root}/{self.info.class_names[label]}/{self.paths[i]}"
        return {"image": read_image(path), "label": label, "name": path}


def canonical_key(path: str) -> tuple[bytes, bytes]:
    """What examples of one class are sorted by: the path without its last suffix, then the whole path."""
    whole = text.encode(path)
    folder, slash, base = whole.rpartition(b"/")
    return folder + slash + (base.rpartition(b".")[0] or base), whole


def open_folder(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Opens the folder of a part below ``rest``, such as ``train/`` or ``val/``, else a seeded split of all images.

    Parts are spelled as in :data:`.splits.SPELLINGS`. A part for testing is never used, which a note says.
    """
    root = rest.rstrip("/") if store.is_address(rest) else str(pathlib.Path(rest).expanduser())
    if not rest or not files.is_dir(root):
        raise UserError(missing_path("folder", rest, "folder"))
    with store.listed(root):
        return _opened(root, rest, split, holdout, seed)


def _opened(root: str, rest: str, split: str, holdout: float | int, seed: int) -> Source:
    parts = _parts(root)
    if not parts:
        folder = Folder(root)
        return take_split(folder, folder.labels, split, holdout, seed, f"folder:{rest}")
    training, validation = splits.choose(parts, "train"), splits.choose(parts, "val")
    assert training is not None
    notes = tuple(
        f"the folder {root}/{name} was left out; name it as data.val to evaluate on it."
        for name in parts
        if name not in (training, validation)
    )
    if empty := [name for name in images.folders(root) if name not in parts]:
        notes += _notes(root, Listing([], [], [], []), [], empty)
    train = noted(Folder(f"{root}/{training}"), notes)
    if validation is None:
        labels = train.labels
        return take_split(train, labels, split, holdout, seed, f"folder:{rest}/{training}")
    if split == "train":
        return train
    return align(Folder(f"{root}/{validation}"), train.info.class_names, f"folder {root}/{validation}")


def missing_path(kind: str, path: str, what: str) -> str:
    """The sentence for a path that is not there, with the nearest names beside it."""
    p = pathlib.Path(path).expanduser()
    if not path:
        return f"'{kind}:' lacks its path; write '{kind}:PATH'."
    if store.is_address(path):
        return f"'{kind}:{path}' does not exist, or is no {what}; check bucket and name."
    if os.path.exists(p):
        return f"'{kind}:{path}' is not a {what}."
    there = [str(q) for q in p.parent.iterdir()] if os.path.isdir(p.parent) else []
    return f"'{kind}:{path}' does not exist{suggest(str(p), there) if there else '.'}"


def _parts(root: str) -> list[str]:
    """The folders of ``root`` that are parts of the data set, each with its classes; none where they are classes.

    ``train`` is also the name of a vehicle: parts have the same folders in them, and nothing but parts holds images.

    Raises:
      UserError: both readings are possible, or there is no part to train on.
    """
    names = images.folders(root)
    named = [name for name in names if splits.of(name)]
    training = splits.choose(named, "train")
    inside = {name: set(images.folders(f"{root}/{name}")) for name in named}
    alike = [a for a in named if any(inside[a] & inside[b] for b in named if b != a)]
    others = [name for name in names if name not in named and images.holds_images(f"{root}/{name}")]
    if others and not alike:
        return []
    if others:
        raise UserError(
            f"the folder {root} can be read in two ways: as parts of a data set ({', '.join(alike)}, which hold the "
            f"same folders) with {others[0]} beside them, or as classes ({', '.join(sorted([*named, *others])[:6])}); "
            f"name the parts (--config.data.path=folder:{root}/{training or alike[0]}, and --config.data.val), or "
            "rename the folders that are classes."
        )
    if training is None and alike:
        raise UserError(
            f"the folder {root} holds parts of a data set ({', '.join(alike)}) and none to train on; name one of them, "
            f"such as folder:{root}/{alike[0]}."
        )
    if training is None or not any(images.holds_images(f"{root}/{training}/{name}") for name in inside[training]):
        return []
    return named


def _notes(root: str, rest: Listing, loose: list[str], empty: list[str]) -> tuple[str, ...]:
    notes = list(rest.left_out(root))
    if loose:
        notes.append(f"{len(loose)} images in {root} are in no class and were left out (first: {min(loose)}).")
    if empty:
        notes.append(f"{len(empty)} folders in {root} hold no images and are no classes (first: {empty[0]}).")
    return tuple(notes)


@functools.cache
def _wanted() -> str:
    return f"put images ({', '.join(s[1:] for s in images.SUFFIXES)}) in one sub-folder per class"


def _nothing(root: str, loose: list[str]) -> str:
    return f"the images in {root} have no class: {_wanted()}" if loose else f"no images in {root}: {_wanted()}"
