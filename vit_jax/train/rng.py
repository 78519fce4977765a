"""Named random streams: every key is a function of (seed, name, step); nothing of it is ever saved."""

from __future__ import annotations

import zlib

import jax

from vit_jax.types import Array, PRNGKey


def stream(seed: int, name: str, step: int | Array = 0) -> PRNGKey:
    """The key of stream ``name`` at ``step``; ``step`` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)
