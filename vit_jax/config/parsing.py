"""Plain data -> typed dataclasses, and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from ml_collections import ConfigDict

from vit_jax.checks import Range, shown, suggest
from vit_jax.config import own
from vit_jax.config.choices import Choice, Variant, class_of, hints, lookup, several, spec_fields
from vit_jax.config.records import PYTHON, gone, is_record_of, named
from vit_jax.types import UsageError, UserError

T = TypeVar("T")


@overload
def parse(cls: type[T], value: Any, path: str = "config") -> T: ...
@overload
def parse(cls: Any, value: Any, path: str = "config") -> Any: ...
def parse(cls: Any, value: Any, path: str = "config") -> Any:
    """``value`` as plain data -> an instance of ``cls``: a dataclass, a scalar type, ``tuple[T, ...]``, a choice.

    Raises:
      UsageError: an unknown field (with the nearest names), a wrong type or a missing field; ``path`` says where.
    """
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if origin is typing.Annotated:
        choice = next((a for a in args[1:] if isinstance(a, Choice)), None)
        found = parse(args[0], value, path) if choice is None else _parse_choice(choice, value, path)
        for mark in args[1:]:
            if isinstance(mark, Range):
                mark.check(path, found)
        return found
    if cls is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _parse_union(args, value, path)
    if origin is typing.Literal:
        if value is None and "none" in args:  # a command line says both alike
            return "none"
        if value not in args:
            raise UsageError(f"{path}={shown(value)} is not allowed{suggest(value, args)}")
        return value
    if origin is tuple:
        return _parse_tuple(args, value, path)
    if origin is list:
        return list(_parse_tuple((*args, ...), value, path))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path}={shown(value)} is of type {type(value).__name__}, expected an object.")
        return {key: parse(args[1], v, f"{path}.{key}") for key, v in value.items()}
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        if isinstance(value, cls):
            return value
        return cls.parse(value, path) if hasattr(cls, "parse") else _parse_dataclass(cls, value, path)
    return _parse_scalar(origin or cls, value, path)


def record_of(value: Any, types: Mapping[str, Any], path: str) -> dict[str, Any]:
    """``value``, an object of a file, with those of its keys that ``types`` has of these types; others stay.

    Args:
      value: what JSON holds.
      types: key -> type as of :func:`parse`; a key that may be missing may be None.
      path: its name, for errors.

    Raises:
      UserError: it is no object, or a key is missing or of another type or range.
    """
    found = parse(dict[str, Any], value, path)
    for key, hint in types.items():
        if key in found:
            found[key] = parse(hint, found[key], f"{path}.{key}")
        elif type(None) not in typing.get_args(hint):
            raise UserError(f"{path} lacks {key!r}")
    return found


def _parse_scalar(cls: type, value: Any, path: str) -> Any:
    if isinstance(value, Mapping) and PYTHON in value:
        raise gone(value, path)
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else math.inf if value > 0 else -math.inf
    if cls is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if cls is str and isinstance(value, str) and "\0" in value:
        raise UsageError(f"{path}={shown(value)} holds a NUL character, which no name or path can.")
    if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
        raise UsageError(f"{path}={shown(value)} is of type {type(value).__name__}, expected {cls.__name__}.")
    return value


def _parse_union(args: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    for member in members[:-1]:
        try:
            return parse(member, value, path)
        except UsageError:
            continue
    return parse(members[-1], value, path)


def _parse_tuple(args: tuple, value: Any, path: str) -> tuple:
    if isinstance(value, str) and any(isinstance(mark, Choice) for mark in typing.get_args(args[0])[1:]):
        value = several(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = (value,)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(parse(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise UsageError(f"{path}={shown(value)} has {len(value)} entries, expected {len(args)}.")
    return tuple(parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _parse_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{path}={shown(value)} is of type {type(value).__name__}, expected the fields of {cls.__name__}."
        )
    if PYTHON in value:
        if not is_record_of(cls, value[PYTHON]):
            raise gone(value, path)
        value = {k: v for k, v in value.items() if k != PYTHON}
    allowed = hints(cls)
    renamed = {f.metadata["formerly"]: f.name for f in dataclasses.fields(cls) if "formerly" in f.metadata}
    for key in value:
        if renamed.get(key) in value:
            raise UsageError(f"'{path}.{key}' is now called {renamed[key]!r}, which is also set; leave it out.")
        if key not in allowed and key not in renamed:
            raise UsageError(f"unknown key {shown(f'{path}.{key}')}{suggest(key, allowed)}")
    value = {renamed.get(k, k): v for k, v in value.items()}
    imports: own.Imports = ()
    if allowed.get("imports") == own.Imports:
        imports = value["imports"] = parse(own.Imports, value.get("imports", ()), f"{path}.imports")
    with own.known(imports):
        kwargs = {k: parse(allowed[k], v, f"{path}.{k}") for k, v in value.items()}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name in allowed and field.name not in kwargs:
            raise UsageError(f"missing key '{path}.{field.name}'; set it with --{path}.{field.name}=...")
    try:
        with own.running(cls):
            return cls(**kwargs)
    except UserError as e:
        raise type(e)(f"{path}: {e}") from None


def _parse_choice(choice: Choice, value: Any, path: str) -> Any:
    table = own.rows(choice)
    classes = {class_of(row) for row in table.values()}
    if not isinstance(value, str | Mapping):
        if not isinstance(value, type) and isinstance(value, (*classes, *filter(None, [choice.base]))):
            return value
        if choice.base and isinstance(value, type):
            raise UsageError(f"{path} is the class {value.__name__}, not one of its objects; write {value.__name__}().")
        what = f" and no {named(choice.base)}" if choice.base else ""
        raise UsageError(f"{path}={shown(value)} is of type {type(value).__name__}{what}{suggest('', table)}")
    own.check(choice, value.get("name") if isinstance(value, Mapping) else value.partition("(")[0].strip(), path)
    fields = dict(value) if isinstance(value, Mapping) else spec_fields(value, table, path)
    if PYTHON in fields:
        if cls := own.of_record(choice, fields[PYTHON]):
            return _parse_dataclass(cls, {k: v for k, v in fields.items() if k != PYTHON}, path)
        return _parse_dataclass(next((c for c in classes if is_record_of(c, fields[PYTHON])), object), fields, path)
    if "name" not in fields:
        raise UsageError(f"{path} lacks the key 'name'{suggest('', table)}")
    row = lookup(table, fields.pop("name"), path)
    if isinstance(row, Variant):
        fields = {**row.fields, **{k: _within(row.fields.get(k), v) for k, v in fields.items()}}
    return _parse_dataclass(class_of(row), fields, path)


def _within(default: Any, given: Any) -> Any:
    """``given`` fields of a nested object on top of the row's own, unless they name another object."""
    if not (isinstance(given, Mapping) and isinstance(default, Mapping)) or "name" in given:
        return given
    return {**default, **given}


def unparse(cls: Any, value: Any) -> Any:
    """Inverse of :func:`parse`: plain data with every field of every object in ``value``, but for those of no table."""
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin is typing.Annotated:
        choice = next((a for a in args[1:] if isinstance(a, Choice)), None)
        if choice is None:
            return unparse(args[0], value)
        name = row_of(choice, value)
        return value if name is None else {"name": name, **_unparsed(value)}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if origin in (typing.Union, types.UnionType):
        return next(unparse(a, value) for a in args if a is not type(None) and _is(a, value))
    if isinstance(value, tuple | list):
        each = [args[0]] * len(value) if origin is list or args[-1:] == (Ellipsis,) else args
        return [unparse(a, v) for a, v in zip(each, value, strict=True)]
    if isinstance(value, Mapping):
        return {k: unparse(args[1], v) for k, v in value.items()}
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        return value
    return str(value) if hasattr(cls, "parse") else _unparsed(value)


def _unparsed(value: Any) -> dict[str, Any]:
    found = hints(type(value))
    with own.known(value.imports if found.get("imports") == own.Imports else ()):
        return {name: unparse(hint, getattr(value, name)) for name, hint in found.items()}


def _is(cls: Any, value: Any) -> bool:
    try:
        return parse(cls, value) is not None
    except UsageError:
        return False


def row_of(choice: Choice, value: Any) -> str | None:
    """The row of ``choice.table`` that says the most of ``value``, and nothing wrong; or its known class. Else None."""
    rows = {n: row for n, row in own.rows(choice).items() if class_of(row) is type(value)}
    given = {n: row.fields if isinstance(row, Variant) else {} for n, row in rows.items()}
    fits = [n for n in rows if all(_holds(value, field, said) for field, said in given[n].items())]
    return max(fits or rows, key=lambda n: len(given[n]) if fits else -len(given[n]), default=None)


def _holds(value: Any, field: str, said: Any) -> bool:
    """Whether a field of ``value`` is what a row says of it."""
    found = getattr(value, field)
    try:
        return bool(said == found or parse(hints(type(value))[field], said, field) == found)
    except UsageError:
        return False
