"""Every key of a configuration for people: its value, what it may be, and what it is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vit_jax import config
from vit_jax.checks import INFINITE, Range
from vit_jax.config import Choice

FEW = 8
"""More rows of a table than this are counted."""
ROLE = re.compile(r":(?:\w+:)?\w+:`[~.!]?([^`]+)`")
"""A cross-reference of Sphinx, such as :func:`~vit_jax.config.load`."""


class Key(NamedTuple):
    """One key of a configuration.

    Attributes:
      name: dotted, as ``--config.NAME`` takes it.
      value: as a user writes it.
      kind: its type and range, or what is to be chosen from.
      about: what it is.
      default: whether ``value`` is the default.
    """

    name: str
    value: str
    kind: str
    about: str
    default: bool


def keys(value: Any, path: str = "") -> Iterator[Key]:
    """The keys of a dataclass or module, and of those in it."""
    said, hints = descriptions(type(value)), config.hints(type(value))
    for field in dataclasses.fields(value):
        if field.name not in hints:
            continue
        own, hint = getattr(value, field.name), hints[field.name]
        same = own == (field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        choice = choice_in(hint)
        inner = _has_keys(own)
        if not inner or choice:
            shown = config.row_of(choice, own) if inner and choice else None
            about = plain(said.get(field.name, "")).replace("``", "")
            yield Key(f"{path}{field.name}", shown or written(hint, own), kind(hint), about, same)
        if inner:
            yield from keys(own, f"{path}{field.name}.")


def _has_keys(value: Any) -> bool:
    """Whether there are keys below that of ``value``; what parses itself is a value, as a duration is."""
    return dataclasses.is_dataclass(value) and not hasattr(value, "parse") and bool(config.hints(type(value)))


def choice_in(hint: Any) -> Choice | None:
    """The choice that a type makes, also where the value may be None."""
    args = typing.get_args(hint)
    here = [a for a in args if isinstance(a, Choice)]
    return next(iter(here), None) or next(filter(None, map(choice_in, args)), None)


def written(hint: Any, value: Any) -> str:
    """``value`` as a user writes it: of an object the name, and the fields that the name does not give."""
    if isinstance(value, tuple | list):
        return f"({', '.join(written(hint, v) for v in value)}{',' * (len(value) == 1)})"
    choice = choice_in(hint)
    if choice and dataclasses.is_dataclass(value) and (name := config.row_of(choice, value)):
        types_, row = config.hints(type(value)), choice.table.get(name)
        known = {f.name: f.default for f in dataclasses.fields(value)} | dict(getattr(row, "fields", {}))
        changed = {k: getattr(value, k) for k in types_ if getattr(value, k) != known[k]}
        inside = ", ".join(f"{k}={written(types_[k], v)}" for k, v in changed.items())
        return f"{name}({inside})" if inside else name
    return str(value) or "''"


def kind(hint: Any, linked: Callable[[Any, str], str] = lambda part, text: text) -> str:
    """A type as a reader writes it; ``linked`` may make more of the text of a table or a dataclass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        for mark in args[1:]:
            if isinstance(mark, Choice):
                return linked(mark.table, _rows(mark.table))
            if isinstance(mark, Range) and mark.most != INFINITE:
                return f"{kind(args[0], linked)}{str(mark).removeprefix('a number').removesuffix(mark.hint)}"
        return kind(args[0], linked)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if a is type(None) else kind(a, linked) for a in args)
    if origin is typing.Literal:
        return " or ".join(f"`{a!r}`" for a in args)
    if origin is tuple:
        one = kind(args[0], linked)
        return f"list of {one}" if args[-1] is Ellipsis else f"({', '.join(kind(a, linked) for a in args)})"
    name = getattr(hint, "__name__", str(hint))
    known = {"str": "text", "bool": "True or False", "int": "integer", "float": "number", "Import": "file or module"}
    return known.get(name, linked(hint, name))


def _rows(table: Mapping[str, Any]) -> str:
    """What is to be chosen from, in a few words."""
    names = list(table)
    if len(names) <= FEW:
        return "|".join(names)
    return f"one of {len(names)} such as {names[0]}, {names[-1]}"


def descriptions(cls: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say about each attribute, each in one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = re.search(r"^Attributes:\n((?: .*\n|\n)+)", inspect.cleandoc(base.__doc__ or "") + "\n", re.MULTILINE)
        for name, text in re.findall(r"^  (\w+): (.+(?:\n    .+)*)", section[1] if section else "", re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def plain(text: str) -> str:
    """Cross-references of Sphinx as code."""
    return ROLE.sub(r"``\1``", text)
