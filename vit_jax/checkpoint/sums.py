"""Sums by which a flipped bit is noticed: the storage format notices a lost file alone."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checkpoint.schema import SCHEMA
from vit_jax.trees import flat

SMALL = 2**20
"""Bytes of an array that is summed on the host: compiling a program for its shape would take longer."""


def _mixed(words: Any, places: Any) -> Any:
    """uint32 of each word and its place: another number for every word at one place (Appleby's MurmurHash3 ends so)."""
    x = words ^ places * np.uint32(0x9E3779B1)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return x ^ x >> np.uint32(16)


def _plain(words: Any, places: Any) -> Any:
    """What checkpoints before schema 3 summed: blind to the order of words."""
    del places
    return words


@functools.partial(jax.jit, static_argnums=1)
def _device_sum(x: jax.Array, mix: Callable[[Any, Any], Any]) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype != bool else x
    places, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):  # in steps that any layout over devices can take on its own
        places += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(mix(words.astype(jnp.uint32), places), dtype=jnp.uint32)


def _checksum(x: jax.Array, mix: Callable[[Any, Any], Any]) -> int:
    if x.nbytes > SMALL or not getattr(x, "is_fully_addressable", True):
        return int(_device_sum(x, mix))
    words = np.ascontiguousarray(x).view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32).reshape(-1)
    return int(np.sum(mix(words, np.arange(words.size, dtype=np.uint32)), dtype=np.uint32))


def checksums(tree: Any, schema: int = SCHEMA) -> dict[str, int]:
    """Path -> sum modulo 2^32 over the array's words, each mixed with its place: equal for every layout over devices
    and hosts, and other where a bit is, or where two words changed places.

    An array at a time: XLA copies what it sums, and one program for all of them would copy the whole tree. Each is
    waited for: many small collectives in flight on more devices than cores can block each other for good.

    Args:
      tree: of arrays.
      schema: of the checkpoint; before 3 words were summed as they are.
    """
    mix = _mixed if schema >= 3 else _plain
    return {path: _checksum(leaf, mix) for path, leaf in flat(tree).items()}


def text_sum(value: Any) -> int:
    """Of what JSON makes of ``value``, whatever the order of its keys."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode())
