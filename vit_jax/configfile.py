"""Configuration files: Python whose mistakes become sentences with file and line."""

from __future__ import annotations

import contextlib
import inspect
import os
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.checks import shown, suggest
from vit_jax.types import UsageError, UserError

MAX_BYTES = 2**20
"""A larger file is no configuration."""


def run(spec: str) -> Mapping[str, Any]:
    """What ``get_config(arg)`` of ``"FILE"`` or ``"FILE:ARG"`` returns.

    Raises:
      UsageError: no such file, or one that fails (with the line), has no ``get_config`` or makes no configuration.
    """
    file, colon, arg = spec.partition(":")
    if colon and not arg:
        raise UsageError(f"{spec!r} ends with a colon; write FILE:ARG, or the file alone.")
    if not os.path.isfile(file):
        folder = os.path.dirname(file)
        names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
        there = [os.path.join(folder, name) for name in names if name.endswith(".py")]
        raise UsageError(f"no config file {shown(file)}{suggest(file, there)}")
    if os.path.getsize(file) > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES:,} bytes, which is no configuration.")
    with _explained(file):
        get_config = runpy.run_path(file).get("get_config")
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
    with _explained(file):
        config = get_config(*args)
        if not isinstance(config, Mapping | ConfigDict):
            raise UsageError(f"get_config of {file} returns {shown(config)}; let it return a ConfigDict.")
        return config.to_dict() if isinstance(config, ConfigDict) else config


@contextlib.contextmanager
def _explained(file: str) -> Iterator[None]:
    """Makes a sentence of what goes wrong in a configuration file."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(e.__traceback__)]
        place = next((frame for frame in reversed(frames) if frame[0] == file), (file, None))
        if isinstance(e, SyntaxError) and e.filename:
            place = e.filename, e.lineno
        where = f", line {place[1]}" if place[1] else ""
        reason = str(e.msg if isinstance(e, SyntaxError) else e).strip().splitlines()[:1]
        raise UsageError(f"{place[0]}{where}: {': '.join([type(e).__name__, *reason])[:200]}.") from e
