"""Where examples come from: ``kind:rest`` strings, one row of :data:`SOURCES` per kind."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import numpy as np

from vit_jax.config import lookup
from vit_jax.data.sources.base import Info, NothingHeldOut, Record, Source, take_split
from vit_jax.data.sources.captioned import Captioned
from vit_jax.data.sources.digits import open_digits
from vit_jax.data.sources.digits_pairs import open_digits_pairs
from vit_jax.data.sources.fake import open_fake
from vit_jax.data.sources.folder import open_folder
from vit_jax.data.sources.mixture import open_mixture
from vit_jax.data.sources.own import kinds, open_own
from vit_jax.data.sources.pairs_file import open_csv, open_jsonl
from vit_jax.data.sources.parquet import open_parquet
from vit_jax.data.sources.tar import open_tar, write_tar
from vit_jax.data.sources.tfds import open_tfds
from vit_jax.io import store
from vit_jax.types import UserError

SOURCES: dict[str, Callable[..., Source]] = {
    "csv": open_csv,
    "digits": open_digits,
    "digits_pairs": open_digits_pairs,
    "fake": open_fake,
    "folder": open_folder,
    "jsonl": open_jsonl,
    "mix": open_mixture,
    "parquet": open_parquet,
    "tar": open_tar,
    "tfds": open_tfds,
}


KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".tar": "tar"}
"""Ending of a file -> the kind of source that it most likely is."""


def open_source(
    path: Source | str,
    split: str = "train",
    *,
    holdout: float | int = 0.1,
    seed: int = 0,
    templates: tuple[str, ...] = (),
) -> Source:
    """Opens ``kind:rest``, for example ``"folder:/my/images"`` or ``"digits"``.

    Args:
      path: kind and place, see the module of each kind; or a source of one's own, whose seeded split is not stratified,
        from Python or as ``"Class:ARGUMENT"`` of a class that the configuration imports.
      split: ``"train"`` or ``"val"``; where the data has no split of its own, a seeded stratified one is made.
      holdout: fraction (below 1) or number of examples for ``"val"``; 0 trains on everything.
      seed: names the seeded split. It is not the seed of training.
      templates: prompt templates that make captions of class names, for a source that has no captions.

    Raises:
      UserError: unknown kind, missing path or no examples.
    """
    assert split in ("train", "val"), split
    own = path if isinstance(path, Source) else open_own(path, path.partition(":")[0] in SOURCES)
    if own is not None:
        labels = np.zeros(len(own), np.int32)  # what they are would take reading every example
        source = take_split(own, labels, split, holdout, seed, named(path))
    else:
        assert isinstance(path, str)
        source = _opened(path, split, holdout, seed, templates)
    return Captioned(source, templates) if templates and not source.info.captions else source


def open_parts(path: Source | str) -> tuple[Source | None, Source]:
    """The training and the validation part that the data has of its own; else None and all of it.

    Raises:
      UserError: see :func:`open_source`.
    """
    train = open_source(path, "train", holdout=0)
    try:
        return train, open_source(path, "val", holdout=0)
    except NothingHeldOut:
        return None, train


def _opened(path: str, split: str, holdout: float | int, seed: int, templates: tuple[str, ...]) -> Source:
    if not path:
        raise UserError("data.path is empty; name the images, for example --config.data.path=folder:/my/images")
    kind, _, rest = path.partition(":")
    store.check(path, query=True)
    if kind not in SOURCES and (kind.startswith(("/", ".", "~")) or store.is_address(path) or os.path.exists(path)):
        of = KINDS.get(os.path.splitext(path)[1].lower(), "folder")
        raise UserError(f"the path {path!r} does not say what it holds; write for example '{of}:{path}'.")
    opener = lookup({**kinds(), **SOURCES}, kind, "source")
    if kind == "mix" and templates:
        opener = functools.partial(opener, templates=templates)
    try:
        return opener(rest, split, holdout=holdout, seed=seed)
    except OSError as e:
        if isinstance(e, UserError) or not store.is_address(rest):
            raise
        raise UserError(f"the data at {rest} cannot be read ({e.strerror}).") from e


def named(path: Source | str) -> str:
    """The data at ``path`` in a sentence."""
    return repr(path) if isinstance(path, str) else f"the {type(path).__name__} of Python"


__all__ = ["SOURCES", "Info", "Record", "Source", "named", "open_parts", "open_source", "write_tar"]
