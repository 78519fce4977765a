"""Configurations in files: Python whose mistakes become sentences with file and line, recipes by name, stored runs."""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax import imports
from vit_jax.checks import shown, suggest
from vit_jax.io import jsonfile, mirror, store
from vit_jax.io import text as texts
from vit_jax.types import UsageError

MAX_BYTES = 2**20
"""A larger file is no configuration."""
HERE = pathlib.Path(__file__).parent
RECIPES = next(filter(pathlib.Path.is_dir, (HERE / "configs", HERE.with_name("configs"))), HERE)
"""Folder of the recipes that come with the package: in it where it is installed, beside it in a checkout."""
STORED = "config.json"
"""Name of the file in which a run keeps its configuration."""


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(name.removesuffix(".py") for name in os.listdir(RECIPES) if re.fullmatch(r"[a-z]\w*\.py", name))


def title(name: str) -> str:
    """The first line of what a recipe says of itself."""
    docstring = ast.get_docstring(ast.parse(texts.read(RECIPES / f"{name}.py"))) or ""
    return docstring.partition("\n")[0]


def run(spec: str) -> Mapping[str, Any]:
    """A configuration by its place.

    Args:
      spec: ``"FILE.py"``, or the name of one of :func:`recipes`; with ``":ARG"``, an argument of its ``get_config``.
        Or what keeps one as it is: a file ``"X.json"``, or the folder or the address of a run.

    Returns:
      What ``get_config(arg)`` returns, or what is stored.

    Raises:
      UsageError: no such file, or one that fails (with the line), has no ``get_config`` or makes no configuration.
    """
    if store.is_address(spec):
        return _at_address(spec)
    name, colon, arg = spec.partition(":")
    if colon and not arg:
        raise UsageError(f"{spec!r} ends with a colon; write FILE:ARG, or the file alone.")
    file = _found(name)
    if file.endswith(".json"):
        if arg:
            raise UsageError(f"{name} is a stored configuration, which takes no argument such as {arg!r}.")
        stored = jsonfile.read(pathlib.Path(file), "; name a recipe, a file FILE.py or a run")
        return imports.recorded(stored, os.path.dirname(file) or ".")
    if os.path.getsize(file) > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES:,} bytes, which is no configuration.")
    module = imports.run(file)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UsageError(f"{file} does not define get_config(arg='').")
    args = (arg,) if arg else ()
    try:
        inspect.signature(get_config).bind(*args)
    except ValueError:
        pass  # of a builtin nothing is known
    except TypeError:
        takes = f"takes no argument such as {arg!r}; write {file}" if arg else f"needs an argument; write {file}:ARG"
        raise UsageError(f"get_config of {file} {takes}.") from None
    with imports.explained(file), imports.beside(module):
        config = get_config(*args)
        if not isinstance(config, Mapping | ConfigDict):
            raise UsageError(f"get_config of {file} returns {shown(config)}; let it return a ConfigDict.")
        return config.to_dict() if isinstance(config, ConfigDict) else config


def _at_address(address: str) -> Mapping[str, Any]:
    """The configuration of a run at an address; nothing there is run."""
    file = mirror.local(address.removesuffix(f"/{STORED}")) / STORED
    if not file.is_file():
        raise UsageError(f"{address!r} holds no run: {STORED} is missing.")
    return imports.recorded(jsonfile.read(file, "; name a run"), address)


def defining(spec: str) -> list[str]:
    """The files that define the classes which a configuration file defines or imports from beside it."""
    file = STORED if store.is_address(spec) else _found(spec.partition(":")[0])
    return [] if file.endswith(".json") else imports.defined_in(imports.opened(file))


def _found(name: str) -> str:
    """The file that ``name`` stands for: itself, a recipe, or what a run keeps."""
    if os.path.isfile(name):
        return name
    known = recipes()
    if name in known:
        return str(RECIPES / f"{name}.py")
    if os.path.isfile(stored := os.path.join(name, STORED)):
        return stored
    if os.path.isdir(name):
        raise UsageError(f"no config file {shown(name)}: it is a folder without {STORED}, so it holds no run.")
    if re.fullmatch(r"\w+", name):
        near = suggest(name, known)
        rest = f" The recipes are {', '.join(known)}." if near.endswith("?") else ""
        raise UsageError(f"no recipe {name!r}{near}{rest}")
    folder = os.path.dirname(name)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
    there = [os.path.join(folder, found) for found in names if found.endswith((".py", ".json"))]
    raise UsageError(f"no config file {shown(name)}{suggest(name, there)}")
