"""How two configurations differ, and which keys may."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def resumable(default: Any) -> Any:
    """A dataclass field that leaves the result of training as it is: a run may be resumed with another value."""
    return dataclasses.field(default=default, metadata={"resumable": True})


def resumable_keys(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of the :func:`resumable` fields of a configuration and of the dataclasses in it."""
    for field in dataclasses.fields(value):
        if "resumable" in field.metadata:
            yield f"{path}{field.name}"
        elif dataclasses.is_dataclass(inner := getattr(value, field.name)):
            yield from resumable_keys(inner, f"{path}{field.name}.")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What changed between two plain configurations: dotted key, old and new value, None for one that is not there."""
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from difference(a, b, f"{path}{key}.")
        elif a != b or (key in old) != (key in new):
            yield f"{path}{key}", a, b
