"""What files show of values of Python, which they cannot hold."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import types
import typing
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.config.durations import Duration, StepRange
from vit_jax.imports import Import
from vit_jax.types import Array, UsageError

PYTHON = "python"
"""Key of a configuration's record of a value of Python."""


def record(value: Any) -> Any:
    """What JSON shows of a value that it has no form for, as ``json.dumps(..., default=record)`` asks.

    Returns:
      ``{"python": "module.Class", **fields}`` of an object, whose fields may need recording themselves; of an array its
      shape, type and checksum; numbers and durations as they are written.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Array):
        data = np.ascontiguousarray(value)
        about = {"shape": list(data.shape), "dtype": str(data.dtype), "crc32": zlib.crc32(data.tobytes())}
        return {PYTHON: "numpy.ndarray", **about}
    if isinstance(value, Duration | StepRange | Import | pathlib.PurePath):
        return str(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {PYTHON: qualified(value if isinstance(value, type | types.FunctionType) else type(value))}
    own = [f.name for f in dataclasses.fields(value) if f.init and f.name not in ("parent", "name")]
    return {PYTHON: qualified(type(value)), **{name: getattr(value, name) for name in own}}


def named(base: type | types.UnionType) -> str:
    """A class or a union of classes in a sentence."""
    return " or ".join(map(qualified, typing.get_args(base) or [base]))


def qualified(value: Any) -> str:
    """The name of a class or function, with its module."""
    return f"{value.__module__}.{value.__qualname__}"


def is_record_of(cls: Any, name: str) -> bool:
    """Whether a record's ``name`` is of ``cls``; a class of this package may have moved between modules since."""
    inside = __name__.partition(".")[0] + "."
    moved = cls.__module__.startswith(inside) and name.startswith(inside) and name.endswith(f".{cls.__qualname__}")
    return moved or name == qualified(cls)


def gone(value: Mapping[str, Any], path: str) -> UsageError:
    """The error where a file has the record of a value, and the value itself is needed."""
    key = re.sub(r"\[\d+\].*", "", path.removeprefix("config."))
    fields = ", ".join(f"{k}={v!r}" for k, v in value.items() if k != PYTHON)
    return UsageError(
        f"{path} was the Python object {value[PYTHON]}({fields}), which no file can hold; name the file of its "
        f"class, --imports FILE or --config.imports=FILE, or hand it in again from Python: changes={{{key!r}: ...}} of "
        "vit_jax.train, evaluate or load."
    )
