"""Configuration: a `ml_collections` file outside, frozen typed dataclasses inside.

A user writes plain data: ``configs/x.py`` returns a ``ConfigDict``, the command line overrides its keys. :func:`parse`
turns that once into the dataclasses that live beside what they configure; their defaults are the only defaults, and an
unknown or mistyped field is a sentence. Where one of several things is selected, the field is
``Annotated[T, Choice(TABLE)]`` and the user writes ``"name"``, ``"name(a=1)"`` or ``{"name": "name", "a": 1}``. Where
the choice names a ``base``, Python code may also hand in a value of its own; :func:`record` is what files show of it.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import pathlib
import re
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from ml_collections import ConfigDict

from vit_jax import configfile
from vit_jax.checks import Range, shown
from vit_jax.checks import suggest as suggest
from vit_jax.types import Array, UsageError, UserError

T = TypeVar("T")


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


MAX_STEPS = 2**31 - 1
"""A step is an int32."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: ``"20 epochs"``, ``"1000 steps"``, ``"1e6 examples"``, ``"5%"`` or a number of steps."""

    value: float
    unit: str = "steps"

    @classmethod
    def parse(cls, value: Any, path: str) -> Duration:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_STEPS:
            return cls(float(value))
        units = {"%": "percent", "percent": "percent"}
        units |= {u[: len(u) - cut]: u for u in ("steps", "examples", "epochs") for cut in (0, 1)}
        match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:e\+?\d{1,2})?)\s*([a-z%]+)\s*", str(value))
        if not match or match[2] not in units:
            raise UsageError(
                f"{path}={shown(value)} is no duration; write '20 epochs', '1000 steps', '1e6 examples' or '5%'."
            )
        return cls(float(match[1]), units[match[2]])

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.unit == "percent" else f"{self.value:g} {self.unit}"

    def steps(self, *, batch_size: int, num_examples: int, total: int | None = None) -> int:
        """The duration in optimizer steps; percent needs the ``total`` number of steps."""
        if self.unit == "percent":
            if total is None:
                raise UsageError(f"the length of training cannot be {str(self)!r}: a percentage of itself.")
            return round(self.value / 100 * total)
        scale = {"steps": 1.0, "examples": 1 / batch_size, "epochs": num_examples / batch_size}[self.unit]
        if not 0 <= self.value * scale <= MAX_STEPS:
            raise UsageError(f"a duration of {str(self)!r} is not allowed; the most is {MAX_STEPS:,} steps.")
        return round(self.value * scale)


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
        raise _gone(value, path)
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
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = (value,)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(parse(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise UsageError(f"{path}={shown(value)} has {len(value)} entries, expected {len(args)}.")
    return tuple(parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def hints(cls: type) -> dict[str, Any]:
    """Types of the fields a user may set; of a Linen module all but ``parent`` and ``name``."""
    own = typing.get_type_hints(cls, include_extras=True)
    return {
        f.name: own[f.name]
        for f in dataclasses.fields(cls)
        if f.init and f.name in own and f.name not in ("parent", "name")
    }


def _parse_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{path}={shown(value)} is of type {type(value).__name__}, expected the fields of {cls.__name__}."
        )
    if PYTHON in value:
        if not _is_record_of(cls, value[PYTHON]):
            raise _gone(value, path)
        value = {k: v for k, v in value.items() if k != PYTHON}
    allowed = hints(cls)
    renamed = {f.metadata["formerly"]: f.name for f in dataclasses.fields(cls) if "formerly" in f.metadata}
    for key in value:
        if renamed.get(key) in value:
            raise UsageError(f"'{path}.{key}' is now called {renamed[key]!r}, which is also set; leave it out.")
        if key not in allowed and key not in renamed:
            raise UsageError(f"unknown key {shown(f'{path}.{key}')}{suggest(key, allowed)}")
    value = {renamed.get(k, k): v for k, v in value.items()}
    kwargs = {k: parse(allowed[k], v, f"{path}.{k}") for k, v in value.items()}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name in allowed and field.name not in kwargs:
            raise UsageError(f"missing key '{path}.{field.name}'; set it with --{path}.{field.name}=...")
    try:
        return cls(**kwargs)
    except UserError as e:
        raise type(e)(f"{path}: {e}") from None


def _parse_choice(choice: Choice, value: Any, path: str) -> Any:
    table, classes = choice.table, {_class_of(row) for row in choice.table.values()}
    if not isinstance(value, str | Mapping):
        if not isinstance(value, type) and isinstance(value, (*classes, *filter(None, [choice.base]))):
            return value
        if choice.base and isinstance(value, type):
            raise UsageError(f"{path} is the class {value.__name__}, not one of its objects; write {value.__name__}().")
        what = f" and no {_named(choice.base)}" if choice.base else ""
        raise UsageError(f"{path}={shown(value)} is of type {type(value).__name__}{what}{suggest('', table)}")
    fields = dict(value) if isinstance(value, Mapping) else spec_fields(value, table, path)
    if PYTHON in fields:
        return _parse_dataclass(next((c for c in classes if _is_record_of(c, fields[PYTHON])), object), fields, path)
    if "name" not in fields:
        raise UsageError(f"{path} lacks the key 'name'{suggest('', table)}")
    row = lookup(table, fields.pop("name"), path)
    if isinstance(row, Variant):
        fields = {**row.fields, **{k: _within(row.fields.get(k), v) for k, v in fields.items()}}
    return _parse_dataclass(_class_of(row), fields, path)


def _within(default: Any, given: Any) -> Any:
    """``given`` fields of a nested object on top of the row's own, unless they name another object."""
    if not (isinstance(given, Mapping) and isinstance(default, Mapping)) or "name" in given:
        return given
    return {**default, **given}


def _class_of(row: Any) -> Any:
    return row.cls if isinstance(row, Variant) else row


def spec_fields(text: str, table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """``"name(1, b=2)"`` -> ``{"name": "name", first field: 1, "b": 2}``; arguments are literals, nothing is run."""
    if text in table:  # names may hold characters that an expression may not
        return {"name": text}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            return {"name": text.strip()}
        name = ast.unparse(call.func)
        args = [_literal(arg) for arg in call.args]
        keywords = [(str(k.arg), _literal(k.value)) for k in call.keywords]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UsageError(
            f"{path}={shown(text)} cannot be read; write a name or name(key=value), paths in quotes"
            f"{suggest(text, table)}"
        ) from None
    row = _class_of(lookup(table, name, path))
    order = [f.name for f in dataclasses.fields(row) if f.name in hints(row) and not f.kw_only]
    if len(args) > len(order):
        raise UsageError(f"{path}={shown(text)} has too many arguments; {name} takes {', '.join(order) or 'none'}.")
    given = dict(zip(order, args, strict=False))
    if twice := {"name", *given}.intersection(key for key, _ in keywords):
        raise UsageError(f"{path}={shown(text)} sets {min(twice)!r} twice; leave one of them out.")
    return {"name": name, **given, **dict(keywords)}


def _literal(node: ast.expr) -> Any:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Call) else ast.literal_eval(node)


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
    return {name: unparse(hint, getattr(value, name)) for name, hint in hints(type(value)).items()}


def _is(cls: Any, value: Any) -> bool:
    try:
        return parse(cls, value) is not None
    except UsageError:
        return False


def row_of(choice: Choice, value: Any) -> str | None:
    """The row of ``choice.table`` that says the most of ``value``, and nothing wrong; None where it is of no row."""
    rows = {n: row for n, row in choice.table.items() if _class_of(row) is type(value)}
    given = {n: row.fields if isinstance(row, Variant) else {} for n, row in rows.items()}
    fields = _unparsed(value) if rows else {}
    fits = [n for n in rows if _parse_row(choice, n, {k: v for k, v in fields.items() if k not in given[n]}) == value]
    return max(fits or rows, key=lambda n: len(given[n]) if fits else -len(given[n]), default=None)


def _parse_row(choice: Choice, name: str, fields: Mapping[str, Any]) -> Any:
    try:
        return _parse_choice(choice, {**fields, "name": name}, name)
    except UsageError:
        return None


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The configuration of a recipe, a file or a run (``spec``), with ``(dotted key, text)`` overrides applied.

    Returns:
      Nested plain dictionaries, ready for :func:`parse`.

    Raises:
      UsageError: see :func:`vit_jax.configfile.run`.
    """
    return override(plain(configfile.run(spec)), overrides)


def plain(config: Any) -> dict[str, Any]:
    """A ``ConfigDict`` or mapping as nested dictionaries of its values.

    Raises:
      UsageError: it contains itself.
    """
    try:
        items = config.to_dict() if isinstance(config, ConfigDict) else config
        return {k: plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in items.items()}
    except RecursionError:
        raise UsageError("the configuration contains itself; return dictionaries of their own.") from None


def override(config: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A copy of ``config`` with each ``("optim.lr", "3e-4")`` set; values are Python literals or else text."""
    return change(config, [(key, literal(text)) for key, text in overrides])


def change(config: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of ``config`` with each ``("optim.lr", 3e-4)`` set.

    Raises:
      UsageError: a key leads into a value that has no keys.
    """
    try:
        out = {k: change(v, ()) if isinstance(v, Mapping) else v for k, v in config.items()}
    except RecursionError:
        raise UsageError("the configuration is nested too deeply; no key leads so far.") from None
    for key, value in changes:
        node, rest = out, key.split(".")
        for part in rest[:-1]:
            child = node.get(part)
            node[part] = child = {"name": child} if isinstance(child, str) else {} if child is None else child
            if not isinstance(child, dict):
                raise UsageError(f"{key!r} reaches into {part!r}, which is {child!r}; override {part!r} as a whole.")
            if "(" in str(child.get("name", "")):
                raise UsageError(f"{key!r} reaches into {child['name']!r}; override {part!r} as a whole.")
            node = child
        node[rest[-1]] = value
    return out


def literal(text: str) -> Any:
    """What a user means by the ``text`` of a value: a Python literal, true, false or none, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


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
    if isinstance(value, Duration | pathlib.PurePath):
        return str(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {PYTHON: _qualified(value if isinstance(value, type | types.FunctionType) else type(value))}
    own = [f.name for f in dataclasses.fields(value) if f.init and f.name not in ("parent", "name")]
    return {PYTHON: _qualified(type(value)), **{name: getattr(value, name) for name in own}}


def _named(base: type | types.UnionType) -> str:
    return " or ".join(map(_qualified, typing.get_args(base) or [base]))


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_record_of(cls: Any, name: str) -> bool:
    """Whether a record's ``name`` is of ``cls``; a class of this package may have moved between modules since."""
    inside = __name__.partition(".")[0] + "."
    moved = cls.__module__.startswith(inside) and name.startswith(inside) and name.endswith(f".{cls.__qualname__}")
    return moved or name == _qualified(cls)


def _gone(value: Mapping[str, Any], path: str) -> UsageError:
    """The error where a file has the record of a value, and the value itself is needed."""
    key = re.sub(r"\[\d+\].*", "", path.removeprefix("config."))
    fields = ", ".join(f"{k}={v!r}" for k, v in value.items() if k != PYTHON)
    return UsageError(
        f"{path} was the Python object {value[PYTHON]}({fields}), which no file can hold; hand it in again from "
        f"Python: changes={{{key!r}: ...}} of vit_jax.train, evaluate or load."
    )


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
