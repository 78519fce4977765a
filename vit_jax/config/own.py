"""Classes of one's own beside the rows of tables: those of the imports that are known while something is read."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from vit_jax.config import records
from vit_jax.config.choices import Choice, Variant
from vit_jax.imports import Import, explained
from vit_jax.types import UsageError

Imports = tuple[Import, ...]
"""Type of a configuration's field ``imports``, whose classes all of its other fields know."""
_KNOWN: ContextVar[Imports] = ContextVar("imports", default=())


@contextlib.contextmanager
def known(imports: Sequence[Import]) -> Iterator[None]:
    """Lets the block name the classes of ``imports``, besides those that are known already."""
    token = _KNOWN.set((*_KNOWN.get(), *(i for i in imports if i not in _KNOWN.get())))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def named() -> Imports:
    """The imports that are known."""
    return _KNOWN.get()


def called(name: str) -> dict[type, Import]:
    """Known classes called ``name``, and where each comes from."""
    return {place.classes[name]: place for place in _KNOWN.get() if name in place.classes}


def suiting(suits: Callable[[type], bool]) -> dict[str, type]:
    """Known classes by name, where it is that of one class alone which suits."""
    fit = {name: [cls for cls in called(name) if suits(cls)] for place in _KNOWN.get() for name in place.classes}
    return {name: classes[0] for name, classes in fit.items() if len(classes) == 1}


def rows(choice: Choice) -> Mapping[str, Callable[..., Any] | Variant]:
    """Those of the table, and the known classes whose objects the choice takes."""
    if choice.base is None or not _KNOWN.get():
        return choice.table
    return {**suiting(lambda cls: _is_a(cls, choice.base) and not _lacks(cls)), **choice.table}


def check(choice: Choice, name: Any, path: str) -> None:
    """Raises :class:`UsageError` where ``name`` is that of a known class, and not of what is meant without a doubt."""
    there = called(name) if isinstance(name, str) else {}
    if not there or choice.base is None:
        return
    fit = [cls for cls in there if _is_a(cls, choice.base)]
    places = " and ".join(there[cls].place for cls in fit)
    if fit and name in choice.table:
        raise UsageError(f"{path}: {name!r} is a class of {places}, and has a meaning without it; rename the class.")
    if len(fit) > 1:
        raise UsageError(f"{path}: {name!r} is a class of {places}; rename one of them.")
    for cls in () if name in choice.table else there:
        if reason := _lacks(cls) if fit else f"is no {records.named(choice.base)}":
            raise UsageError(f"{path}: {name} of {there[cls].place} {reason}.")


def name_of(value: Any) -> str | None:
    """The name by which the class of ``value`` is known; None for others."""
    name = type(value).__name__
    return name if type(value) in called(name) else None


def of_record(choice: Choice, name: str) -> type | None:
    """The known class that the record of a value of Python, ``"module.Class"``, is of; None for none."""
    row = rows(choice).get(name.rpartition(".")[2])
    return row if isinstance(row, type) and row in called(row.__name__) else None


def running(cls: Any) -> contextlib.AbstractContextManager[None]:
    """Makes a sentence of what a known class raises in the block."""
    place = called(getattr(cls, "__name__", "")).get(cls)
    return explained(place.place) if place else contextlib.nullcontext()


def _is_a(cls: type, base: Any) -> bool:
    """Whether objects of ``cls`` are of ``base``, as far as a class tells."""
    for one in typing.get_args(base) or (base,):
        try:
            found = issubclass(cls, one)
        except TypeError:  # a protocol with attributes, which fields may be
            fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
            wanted = [n for n in {*vars(one), *inspect.get_annotations(one)} if not n.startswith("_")]
            found = all(hasattr(cls, n) or n in fields for n in wanted)
        if found:
            return True
    return False


def _lacks(cls: type) -> str:
    """Why ``cls`` makes no values, as the end of a sentence; "" where it does."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"does not define {', '.join(missing)}"
    if any(base.__module__.startswith("flax.") for base in cls.__mro__):  # Linen makes dataclasses by itself
        return ""
    made = getattr(cls, "__dataclass_params__", None)
    inherited = "__dataclass_params__" not in vars(cls) and bool(inspect.get_annotations(cls))
    if made is not None and made.frozen and not inherited:
        return ""
    return "is no frozen dataclass; write @dataclasses.dataclass(frozen=True) above it"
