"""Finding the files of a sharded data set: braces, globs and folders, with the split read off the file names."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable
from typing import Any

from vit_jax.data.sources.base import Source, align, take_split
from vit_jax.data.sources.folder import VAL_NAMES, missing_path
from vit_jax.types import UserError


def find_shards(kind: str, pattern: str, suffixes: tuple[str, ...], split: str) -> tuple[list[str], bool]:
    """The files of ``pattern``, in the order of braces or else sorted.

    Args:
      kind: of the source, for error sentences.
      pattern: a file, ``a-{000..003}.tar``, ``{a,b}.tar``, a glob, or a folder. In a folder where some names start with
        ``train`` and others with ``val`` (``valid``, ``validation``), those are the two splits; without the latter the
        files of ``train``, if any start so, are all the data.
      suffixes: of the files to take from a folder.
      split: ``"train"`` or ``"val"``.

    Returns:
      Paths, and whether they are that split already.

    Raises:
      UserError: a file is missing or there is none.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        names = sorted(n for n in os.listdir(pattern) if n.endswith(suffixes) and not n.startswith("."))
        if not names:
            raise UserError(f"no {' or '.join('*' + s for s in suffixes)} files in the folder {pattern}.")
        sides = {
            side: [n for n in names if re.match(rf"({'|'.join(starts)})(?![a-z])", n)]
            for side, starts in _STARTS.items()
        }
        chosen = sides[split] if all(sides.values()) else sides["train"] or names
        return [os.path.join(pattern, n) for n in chosen], all(sides.values())
    paths: list[str] = []
    for one in expand_braces(pattern):
        found = sorted(glob.glob(one)) if glob.has_magic(one) and not os.path.exists(one) else [one]
        if not found or not os.path.isfile(found[0]):
            raise UserError(missing_path(kind, one, "file") if not found or found == [one] else f"no file {found[0]}.")
        paths += found
    return paths, False


def open_shards(
    kind: str, make: Callable[[list[str]], Any], what: str, rest: str, split: str, holdout: float | int, seed: int
) -> Source:
    """The source that ``make`` makes of the files ``rest`` of a split, which is found by name, else by seed.

    Args:
      kind: of the source, and the suffix of its files in a folder.
      make: paths -> all that they hold, a source that has its ``labels``.
      what: the files of the split "val", for error sentences.
      rest: a pattern, see :func:`find_shards`.
      split: ``"train"`` or ``"val"``.
      holdout: share or number of examples held out where the files are not named by split.
      seed: of the examples that are held out.
    """
    paths, is_split = find_shards(kind, rest, (f".{kind}",), split)
    source = make(paths)
    if not is_split:
        return take_split(source, source.labels, split, holdout, seed, f"{kind}:{rest}")
    if split == "train":
        return source
    train = make(find_shards(kind, rest, (f".{kind}",), "train")[0])
    return align(source, train.info.class_names, f"the {what} of {kind}:{rest}")


_STARTS = {"train": ("train",), "val": VAL_NAMES}


def expand_braces(pattern: str) -> list[str]:
    """``"a-{08..10}.tar"`` -> a-08, a-09, a-10 (zero-padded); ``"{x,y}"`` -> x, y; all combinations of several."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(pieces)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _alternatives(inside: str) -> list[str]:
    match = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not match:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise UserError(f"'{{{inside}}}' counts backwards; write '{{{match[2]}..{match[1]}}}'.")
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    return [f"{i:0{width}d}" for i in range(first, last + 1)]
