"""Pallas calls divided among devices by rows, which ``jit`` does not do by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import sharding


def mesh() -> Any:
    """The mesh whose devices have to be given their rows by hand; None on one device, and inside ``shard_map``."""
    found = jax.sharding.get_abstract_mesh()
    return None if found.empty or found.size == 1 or found.manual_axes else found


def rows(x: Any) -> int:
    """Rows that each device gets: its share of all but the last axis of ``x``, rounded up. Array or shape."""
    return -(-math.prod(x.shape[:-1]) // _parts(mesh()))


def shard_rows(f: Callable[..., Any], split: tuple[jax.Array, ...], whole: tuple[Any, ...]) -> Any:
    """``f(*split, *whole) -> (arrays of rows, sums over the rows)`` with each device's rows on that device.

    Args:
      f: the program of one device; its arrays are a tuple, its sums any tree.
      split: ``[rows, ..., n]``, divided among the devices, zeros behind them where the rows do not divide evenly.
      whole: what every device has, arrays or trees of them.
    """
    devices = mesh()
    if devices is None:
        return f(*split, *whole)
    count = split[0].shape[0]
    more = -count % _parts(devices)
    split = tuple(jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for x in split) if more else split
    run = sharding.over_batch(f, devices, (True,) * len(split) + (False,) * len(whole))
    arrays, sums = run(*split, *whole)
    return tuple(a[:count] for a in arrays), sums


def _parts(devices: Any) -> int:
    """Into how many the rows are divided."""
    return 1 if devices is None else math.prod(devices.shape[axis] for axis in sharding.BATCH)
