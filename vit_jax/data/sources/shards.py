"""Finding the files of a sharded data set: braces, globs and folders, with the split read off the file names."""

from __future__ import annotations

import glob as globbing
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.data.sources import splits
from vit_jax.data.sources.base import Source, align, take_split
from vit_jax.data.sources.folder import missing_path
from vit_jax.io import files, images, store
from vit_jax.types import UserError

MAX_SHARDS = 2**17
"""More files than any data set has: LAION-5B was published in half as many."""


def find_shards(kind: str, pattern: str, suffixes: tuple[str, ...], split: str) -> tuple[list[str], bool]:
    """The files of ``pattern``, in the order of braces or else sorted.

    Args:
      kind: of the source, for error sentences.
      pattern: a file, ``a-{000..003}.tar``, ``{a,b}.tar``, a glob, or a folder. In a folder where some names start with
        ``train`` and others with ``validation`` (see :data:`.splits.SPELLINGS`), those are the two splits; without the
        latter the files of ``train``, if any start so, are all the data. Where a folder holds such files only in
        folders below it, as repositories of Hugging Face do, ``data/`` is meant, else the only one, else those named
        like splits.
      suffixes: of the files to take from a folder.
      split: ``"train"`` or ``"val"``.

    Returns:
      Paths, and whether they are that split already.

    Raises:
      UserError: a file is missing or there is none.
    """
    if "\0" in pattern or pattern.count("{") > 32:
        raise UserError(f"'{kind}:{pattern[:80]!r}' is no pattern of files.")
    pattern = os.path.expanduser(pattern)
    if not (store.is_address(pattern) and globbing.has_magic(pattern.replace("{", "*"))) and files.is_dir(pattern):
        return _in_folder(pattern.rstrip("/") if store.is_address(pattern) else pattern, suffixes, split)
    paths: list[str] = []
    for one in expand_braces(pattern):
        found = files.glob(one) if globbing.has_magic(one) and not files.exists(one) else [one]
        if not found or not (store.is_address(pattern) or files.is_file(found[0])):  # a store tells when it is opened
            raise UserError(missing_path(kind, one, "file") if not found or found == [one] else f"no file {found[0]}.")
        paths += found
        if len(paths) > MAX_SHARDS:
            raise UserError(f"'{kind}:{pattern}' means more than {MAX_SHARDS:,} files; name fewer, or a folder.")
    return paths, False


def open_shards(
    kind: str,
    make: Callable[[list[str]], Any],
    what: str,
    rest: str,
    split: str,
    holdout: float | int,
    seed: int,
    suffixes: tuple[str, ...] = (),
) -> Source:
    """The source that ``make`` makes of the files ``rest`` of a split, which is found by name, else by seed.

    Args:
      kind: of the source.
      make: paths -> all that they hold, a source that has its ``labels``.
      what: the files of the split "val", for error sentences.
      rest: a pattern, see :func:`find_shards`.
      split: ``"train"`` or ``"val"``.
      holdout: share or number of examples held out where the files are not named by split.
      seed: of the examples that are held out.
      suffixes: of its files in a folder, by default the kind.
    """
    suffixes = suffixes or (f".{kind}",)
    paths, is_split = find_shards(kind, rest, suffixes, split)
    source = make(paths)
    if not is_split:
        return take_split(source, source.labels, split, holdout, seed, f"{kind}:{rest}")
    if split == "train":
        return source
    train = make(find_shards(kind, rest, suffixes, "train")[0])
    return align(source, train.info.class_names, f"the {what} of {kind}:{rest}")


def _in_folder(folder: str, suffixes: tuple[str, ...], split: str) -> tuple[list[str], bool]:
    places = _places(folder, suffixes, 2)
    if not places:
        raise UserError(f"no {' or '.join('*' + s for s in suffixes)} files in the folder {folder}.")
    if len(places) > 1 and not all(splits.of(os.path.basename(place)) for place in places):
        raise UserError(f"the folder {folder} holds several data sets ({', '.join(places[:6])}); name one of them.")
    paths = [os.path.join(place, name) for place in places for name in _files(place, suffixes)]
    sides = {side: [p for p in paths if _part(p) == side] for side in ("train", "val")}
    chosen = sides[split] if all(sides.values()) else sides["train"] or paths
    return chosen, all(sides.values())


def _places(folder: str, suffixes: tuple[str, ...], depth: int) -> list[str]:
    """The nearest folders that hold such files: itself, else those in it, of which ``data`` goes before others."""
    if _files(folder, suffixes):
        return [folder]
    below = images.folders(folder) if depth else []
    inside = {name: _places(os.path.join(folder, name), suffixes, depth - 1) for name in below}
    return inside.get("data") or [place for places in inside.values() for place in places]


def _part(path: str) -> str | None:
    """As its name says, else that of its folder."""
    return splits.of_file(os.path.basename(path)) or splits.of(os.path.basename(os.path.dirname(path)))


def _files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names of the files in a folder that end so, in any case; hidden ones are none."""
    return sorted(n for n in files.names(folder) if n.lower().endswith(suffixes) and not n.startswith("."))


def expand_braces(pattern: str) -> Iterator[str]:
    """``"a-{08..10}.tar"`` -> a-08, a-09, a-10 (zero-padded); ``"{x,y}"`` -> x, y; all combinations of several.

    One after the other: whoever misses a file stops there.
    """
    before, brace, rest = pattern.partition("{")
    inside, closed, after = rest.partition("}")
    if not (brace and closed):
        yield pattern
        return
    if "{" in inside:  # a{b{1,2}
        for end in expand_braces(rest):
            yield f"{before}{{{end}"
        return
    for choice in _alternatives(inside):
        for end in expand_braces(after):
            yield f"{before}{choice}{end}"


def _alternatives(inside: str) -> Iterator[str]:
    match = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inside)
    if not match:
        yield from inside.split(",") if "," in inside else ["{" + inside + "}"]
        return
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise UserError(f"'{{{inside}}}' counts backwards; write '{{{match[2]}..{match[1]}}}'.")
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    for i in range(first, last + 1):
        yield f"{i:0{width}d}"
