"""Published weights by a short name: the rows of ``zoo.csv``.

A tag is the name of a model of ours, a dot, and what the weights were trained on. Accuracies, licences and sizes are as
their publishers state them, each row with its source; none was measured here.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import fnmatch
import functools
import importlib.resources
import os
from collections.abc import Mapping
from typing import Any

from vit_jax import models
from vit_jax.io import text
from vit_jax.types import UsageError

FILE = "zoo.csv"


@dataclasses.dataclass(frozen=True)
class PretrainedTag:
    """Weights that were published.

    Attributes:
      tag: what :func:`vit_jax.load` takes, ``"vit_b16.augreg_in21k_ft_in1k"``.
      model: the name of the model for :func:`vit_jax.create`, the part before the dot.
      place: where they are published, ``hf://org/name``.
      licence: of the weights, an SPDX identifier where there is one; empty where none is stated.
      size: side of the images in pixels.
      metric: what ``accuracy`` is of: ``"top1"`` on ImageNet-1k's validation images by the weights' own head, or
        ``"zero_shot"``, the same from texts; empty without one.
      accuracy: in percent, as published; None where none was found.
      source: where licence and accuracy are stated.
    """

    tag: str
    model: str
    place: str
    licence: str
    size: int
    metric: str
    accuracy: float | None
    source: str


@functools.cache
def tags() -> Mapping[str, PretrainedTag]:
    """All rows by their tags, in the order of the file."""
    data = importlib.resources.files(__package__).joinpath(FILE).read_bytes()
    return {row["tag"]: _row(row) for row in csv.DictReader(text.lines(text.decode(data)))}


def _row(row: Mapping[str, Any]) -> PretrainedTag:
    accuracy = float(row["accuracy"]) if row["accuracy"] else None
    model = row["tag"].partition(".")[0]
    return PretrainedTag(**{**row, "model": model, "size": int(row["size"]), "accuracy": accuracy})


def find(pattern: str = "*") -> list[PretrainedTag]:
    """The rows whose tags ``pattern`` matches, ``*`` and ``?`` standing for any characters or one."""
    return [row for tag, row in tags().items() if fnmatch.fnmatchcase(tag, pattern)]


def place_of(name: str, model: str | None = None) -> str:
    """Where the weights called ``name`` are published; anything that is no tag is returned as it is.

    Args:
      name: a tag, or of the ``model`` the part behind the dot.
      model: what the weights are for, any name that :func:`vit_jax.create` takes.

    Raises:
      UsageError: neither a tag nor a place, with the nearest tags.
    """
    known = list(tags())
    if model is not None:
        prefix = f"{models.ALIASES.get(model, model)}."
        name = prefix + name if prefix + name in tags() else name
        known = [tag for tag in known if tag.startswith(prefix)]
    if name in tags():
        return tags()[name].place
    if "://" in name or os.sep in name or os.path.exists(os.path.expanduser(name)):
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) or (known[:3] if model is not None else [])
    if near:
        names = " or ".join(map(repr, near))
        raise UsageError(f"{name!r} is no file or folder here and no tag of published weights; did you mean {names}?")
    return name
