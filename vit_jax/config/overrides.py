"""Configurations as nested dictionaries: where they come from, and their keys with other values."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax import configfile, imports
from vit_jax.types import UsageError


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The configuration of a recipe, a file or a run (``spec``), with ``(dotted key, text)`` overrides applied.

    Returns:
      Nested plain dictionaries, ready for :func:`parse`; what the file itself defines is among the imports.

    Raises:
      UsageError: see :func:`vit_jax.configfile.run`.
    """
    found = override(plain(configfile.run(spec)), overrides)
    own = configfile.defining(spec)
    return found | {"imports": (*imports.texts(found), *own)} if own else found


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
