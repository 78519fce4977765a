"""Where this package keeps what it would otherwise fetch, read or compile again."""

from __future__ import annotations

import os
import pathlib


def folder(*below: str) -> pathlib.Path:
    """``$XDG_CACHE_HOME/vit_jax``, by default ``~/.cache/vit_jax``, and folders ``below`` it; nothing is created."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.path.expanduser(cache), "vit_jax", *below)
