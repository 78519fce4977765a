"""Names of the parts of a data set, as people and Hugging Face spell them."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Part -> how it is called, in any case; of two that are there the first is taken."""


def of(name: str) -> str | None:
    """The part that a folder called ``name`` is: ``"train"``, ``"val"``, ``"test"``, or none."""
    return next((part for part, spellings in SPELLINGS.items() if name.lower() in spellings), None)


def of_file(name: str) -> str | None:
    """The part that a file belongs to whose name starts so: ``train-00000-of-00002.parquet``, ``Validation_1.tar``."""
    match = re.match(r"[a-z]+", name.lower())
    return of(match[0]) if match else None


def choose(names: Iterable[str], part: str) -> str | None:
    """The first spelling of ``part`` among ``names``, as it is written there."""
    there = {name.lower(): name for name in names}
    return next((there[spelling] for spelling in SPELLINGS[part] if spelling in there), None)
