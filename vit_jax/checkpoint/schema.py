"""What a checkpoint holds, by versions."""

from __future__ import annotations

from typing import Any

from vit_jax.types import UserError

SCHEMA = 3
"""Version of what a checkpoint holds. 1 had no number, and no items ``variables`` and ``objective``; 2 no checksum of
``meta``, no word on data and log, and checksums that did not see the order of an array's words."""


META: dict[str, Any] = {
    "checksums": dict[str, dict[str, int]],
    "config": dict[str, Any] | None,
    "class_names": list[str] | None,
    "provenance": dict[str, Any] | None,
    "tokenizer": dict[str, Any] | None,
    "resize": str | None,
    "data": dict[str, dict[str, Any]] | None,
    "rows": int | None,
    "patience": dict[str, Any] | None,
    "goodput": dict[str, Any] | None,
}
"""Keys of ``meta`` and their types; None stands for those that a checkpoint may lack."""


MAX_META = 2**28
"""Bytes of ``meta``: vocabularies and the names of millions of classes have room."""


class Unsuitable(UserError):
    """A checkpoint that is not damaged, but not to be taken either; nor is one before it."""


class NewerSchema(Unsuitable):
    """A checkpoint of a later version of this package."""
