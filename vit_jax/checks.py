"""Numbers that a user gives: in range, or a sentence that says what is.

A range is part of a field's type, ``width: Annotated[int, Range(1, 2**18)]``, or one of the types below. Configurations
and command lines look at it when they are read, a dataclass derived from :class:`Checked` when it is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import os
import struct
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from vit_jax.types import UsageError

INFINITE = float("inf")
LEAST_FLOAT32 = 2.0**-126
"""What is nearer to zero is zero on most devices."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; of a tuple each entry, anything else does not count.

    Attributes:
      least: lower end.
      most: upper end.
      ends: "[" and "]" where an end belongs to the range, "(" and ")" where it does not; then the float32 next to the
        number, with which devices compute, must not be that end either.
      hint: ends the sentence.
    """

    least: float
    most: float
    ends: str = "[]"
    hint: str = ""

    def __contains__(self, value: Any) -> bool:
        near = _float32(value)
        above = self.least <= value and (self.ends[0] == "[" or self.least < near)
        return above and value <= self.most and (self.ends[1] == "]" or near < self.most)

    def __str__(self) -> str:
        if self.most == INFINITE:
            return f"{'a positive number' if self.ends[0] == '(' else 'zero or a positive number'}{self.hint}"
        if self.ends == "[]":
            return f"a number from {_digits(self.least)} to {_digits(self.most)}{self.hint}"
        return f"a number in {self.ends[0]}{_digits(self.least)}, {_digits(self.most)}{self.ends[1]}{self.hint}"

    def check(self, what: str, value: Any) -> None:
        """Raises a :class:`UsageError` where ``value``, or an entry of it, is a number outside of the range."""
        entries = value if isinstance(value, tuple) else (value,)
        if not all(v in self for v in entries if isinstance(v, numbers.Real)):
            raise UsageError(f"{what}={shown(value)} is not allowed; give {self}.")


Size = Annotated[int, Range(1, 2**18)]
"""Of a dimension of parameters: 262,144 is 20 times that of the largest model there is."""
Depth = Annotated[int, Range(1, 256)]
"""Blocks on top of each other."""
Heads = Annotated[int, Range(1, 1024)]
"""Of attention."""
Pixels = Annotated[int, Range(1, 4096)]
"""Side of an image."""
Count = Annotated[int, Range(1, 2**20)]
"""Of what is made or kept at a time."""
Length = Annotated[int, Range(3, 2**16, hint="; start, one token and end take 3")]
"""Tokens of a text."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
"""Of random numbers."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""
Rate = Annotated[float, Range(0, 0.999)]
"""Probability of dropping something, which must leave something."""
Decay = Annotated[float, Range(0, 1, "[)")]
"""Of a moving average."""
Positive = Annotated[float, Range(0, INFINITE, "()")]
NonNegative = Annotated[float, Range(0, INFINITE, "[)")]
Finite = Annotated[float, Range(-1e30, 1e30)]
SMOOTHING = Range(0, 1, "[)", "; 0.1 is usual, 0 turns it off")
Smoothing = Annotated[float, SMOOTHING]
"""Share of probability that other classes get."""


class Checked:
    """Base of dataclasses whose numbers are looked at when an object is made."""

    def __post_init__(self) -> None:
        check(self)


def check(value: Any) -> None:
    """Raises a :class:`UsageError` where a field of the dataclass ``value`` has a range and holds another number."""
    for name, hint in _ranges(value.__class__).items():
        _check(hint, f"{type(value).__name__}.{name}", getattr(value, name))


@functools.cache
def _ranges(cls: Any) -> dict[str, Any]:
    """Types of the fields in which there is a range."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # a class inside of a function may name what only that function knows
        return {}
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name in hints and list(ranges(hints[f.name]))}


def ranges(hint: Any) -> Iterator[Range]:
    """Those in a type, however deep."""
    if isinstance(hint, Range):
        yield hint
    for part in typing.get_args(hint):
        yield from ranges(part)


def _check(hint: Any, what: str, value: Any) -> None:
    args = typing.get_args(hint)
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Range):
            mark.check(what, value)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        for i, entry in enumerate(value):
            _check(args[0] if args[-1] is Ellipsis else args[min(i, len(args) - 1)], f"{what}[{i}]", entry)
    else:
        for part in args[:1] if hasattr(hint, "__metadata__") else args:
            _check(part, what, value)


def positive(what: str, value: float, hint: str = "") -> None:
    """Raises a :class:`UsageError` unless ``value`` is positive and finite; ``hint`` ends the sentence."""
    Range(0, INFINITE, "()", hint).check(what, value)


def physical_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shown(value: Any) -> str:
    """``value`` in a sentence, however long it is."""
    try:
        text = repr(value.item() if hasattr(value, "dtype") and value.ndim == 0 else value)
    except (ValueError, RecursionError):  # Python writes no integers of thousands of digits
        return f"a value of type {type(value).__name__}, too long to be shown,"
    return text if len(text) <= 100 else f"{text[:80]}…{text[-10:]}"


def suggest(name: str, options: Iterable[str]) -> str:
    """The end of an error sentence: the nearest of ``options``, or all of them when few."""
    options = sorted(map(str, options))
    near = difflib.get_close_matches(shown(name).strip("'"), options, n=2, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; allowed: {', '.join(options)}." if len(options) <= 24 else "."


def _float32(value: float) -> float:
    try:
        near = struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return INFINITE if value > 0 else -INFINITE
    return 0.0 if abs(near) < LEAST_FLOAT32 else near


def _digits(end: float) -> str:
    return f"{end:,}" if isinstance(end, int) else f"{end:g}"
