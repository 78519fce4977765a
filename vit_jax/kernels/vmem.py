"""Tiles of rows in the vector memory of a TPU: how many fit, and what lies behind the last row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from vit_jax import sharding
from vit_jax.kernels.windows import up


def budget() -> int:
    """Bytes of VMEM that a kernel may use: half, and 32 MiB when compiling for a TPU elsewhere (v5 has 64 or 128)."""
    return pltpu.get_tpu_info().vmem_capacity_bytes // 2 if sharding.platform() == "tpu" else 32 * 2**20


def excess(what: str, need: int) -> str | None:
    """Why a kernel that needs so many bytes cannot run, as the end of a sentence about ``what``, or None."""
    if need <= budget():
        return None
    return f"{what} takes {need / 2**20:.0f} MiB of VMEM, of which it may use {budget() >> 20}"


def unsupported_rows(x: jax.Array) -> str | None:
    """Why no kernel can run on ``x [..., n]``, array or shape, as the end of a sentence, or None."""
    if not isinstance(math.prod(x.shape), int):  # exported for any batch
        return "the number of rows is not known"
    if math.prod(x.shape) == 0:
        return "there are no rows"
    return None if x.dtype in (jnp.float32, jnp.bfloat16) else f"x is {x.dtype}, neither float32 nor bfloat16"


def inside(value: jax.Array, tile: jax.Array, rows: int) -> jax.Array:
    """A kernel's ``value [rows of a tile, n]`` of this tile, zeros where it reaches behind the last of ``rows``."""
    if rows % value.shape[0] == 0:
        return value
    at = tile * value.shape[0] + jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
    return jnp.where(at < rows, value, jnp.zeros_like(value))


def tile(sizes: Sequence[int], rows: int, need: Callable[[int], int]) -> int:
    """Rows of a tile.

    Args:
      sizes: to choose from, falling, each a multiple of the last.
      rows: that there are.
      need: bytes of VMEM that the kernel takes with so many rows in a tile.

    Returns:
      The first of ``sizes`` that fits, the last if none does; at most ``rows``, rounded up to a multiple of the last.
    """
    fits = next((size for size in sizes if need(size) <= budget()), sizes[-1])
    return min(fits, up(rows, sizes[-1]))
