"""Each device its rows: jit does not divide a Pallas call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vit_jax import sharding


def everywhere(f: Callable[..., Any], split: tuple[jax.Array, ...], whole: tuple[jax.Array, ...]) -> Any:
    """``f(*split, *whole) -> (arrays of rows, sums over the rows)`` with each device's rows on that device.

    Args:
      f: the program of one device.
      split: ``[rows, n]``, divided among the devices, zeros behind them where the rows do not divide evenly.
      whole: what every device has.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return f(*split, *whole)
    rows = split[0].shape[0]
    more = -rows % (mesh.shape["replica"] * mesh.shape["fsdp"])
    split = tuple(jnp.pad(x, ((0, more), (0, 0))) for x in split) if more else split

    def local(*args: jax.Array) -> Any:
        arrays, sums = f(*args)
        return arrays, jax.tree.map(lambda s: jax.lax.psum(s, sharding.BATCH), sums)

    specs = (P(sharding.BATCH),) * len(split) + (P(),) * len(whole)
    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(sharding.BATCH), P()), check_vma=False)
    arrays, sums = spread(*split, *whole)
    return tuple(a[:rows] for a in arrays), sums
