"""One of several things, by name: tables, their rows, and the text ``"name(1, b=2)"``."""

from __future__ import annotations

import ast
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_jax.checks import shown, suggest
from vit_jax.types import UsageError


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """``table[name]``; a name that is not there is a :class:`UsageError` with the nearest ones."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise UsageError(f"unknown {what} {shown(name)}{suggest(name, table)}")


class Variant(NamedTuple):
    """A row of a table: a dataclass and what its fields are, unless they are given.

    Attributes:
      cls: dataclass or Linen module.
      fields: name -> value, as plain data or as the field holds it.
    """

    cls: Callable[..., Any]
    fields: Mapping[str, Any] = types.MappingProxyType({})

    def __call__(self, **fields: Any) -> Any:
        return self.cls(**{**self.fields, **fields})


@dataclasses.dataclass(frozen=True)
class Choice:
    """Marks a field whose value is built from one row of ``table``: name -> dataclass, or :class:`Variant` of one.

    Attributes:
      table: what a name stands for.
      base: class or runtime-checkable protocol of the rows' values, or a union of such; any instance of it is taken as
        it is. None takes instances of the rows' classes alone.
    """

    table: Mapping[str, Callable[..., Any] | Variant]
    base: type | types.UnionType | None = None

    def __hash__(self) -> int:
        return id(self.table)


def class_of(row: Any) -> Any:
    """The class of a row of a table."""
    return row.cls if isinstance(row, Variant) else row


def hints(cls: type) -> Mapping[str, Any]:
    """Types of the fields a user may set; of a Linen module all but ``parent`` and ``name``."""
    hashable: Any = cls
    return _hints(hashable)


@functools.cache
def _hints(cls: Any) -> Mapping[str, Any]:
    own = typing.get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name in own]
    return types.MappingProxyType({name: own[name] for name in names if name not in ("parent", "name")})


def spec_fields(text: str, table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """``"name(1, b=2)"`` -> ``{"name": "name", first field: 1, "b": 2}``; arguments are literals, nothing is run."""
    if text in table:  # names may hold characters that an expression may not
        return {"name": text}
    found = call(text, path, suggest(text, table))
    if found is None:
        return {"name": text.strip()}
    name, args, keywords = found
    row = class_of(lookup(table, name, path))
    order = [f.name for f in dataclasses.fields(row) if f.name in hints(row) and not f.kw_only]
    if len(args) > len(order):
        raise UsageError(f"{path}={shown(text)} has too many arguments; {name} takes {', '.join(order) or 'none'}.")
    given = dict(zip(order, args, strict=False))
    if twice := {"name", *given}.intersection(key for key, _ in keywords):
        raise UsageError(f"{path}={shown(text)} sets {min(twice)!r} twice; leave one of them out.")
    return {"name": name, **given, **dict(keywords)}


def several(text: str) -> tuple[str, ...]:
    """``"name, other(a=1)"`` -> ``("name", "other(a=1)")``; a text that is no such list is the only one."""
    try:
        found = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return (text,)
    items = found.elts if isinstance(found, ast.Tuple) else ()
    if not items or not all(isinstance(item, ast.Name | ast.Call) for item in items):
        return (text,)
    return tuple(map(ast.unparse, items))


def call(text: str, path: str, hint: str = ".") -> tuple[str, list[Any], list[tuple[str, Any]]] | None:
    """``"name(1, b=2)"`` -> the name, the arguments and those with a name; None for text that is no call.

    Raises:
      UsageError: an argument is no literal; ``hint`` ends the sentence.
    """
    try:
        found = ast.parse(text.strip(), mode="eval").body
        if not isinstance(found, ast.Call):
            return None
        keywords = [(str(k.arg), _literal(k.value)) for k in found.keywords]
        return ast.unparse(found.func), [_literal(arg) for arg in found.args], keywords
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UsageError(
            f"{path}={shown(text)} cannot be read; write a name or name(key=value), paths in quotes{hint}"
        ) from None


def _literal(node: ast.expr) -> Any:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Call) else ast.literal_eval(node)
