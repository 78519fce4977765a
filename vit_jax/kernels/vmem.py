"""What fits into the vector memory of a TPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.experimental.pallas import tpu as pltpu

from vit_jax import sharding


def budget() -> int:
    """Bytes of VMEM that a kernel may use: half, and 32 MiB when compiling for a TPU elsewhere (v5 has 64 or 128)."""
    return pltpu.get_tpu_info().vmem_capacity_bytes // 2 if sharding.platform() == "tpu" else 32 * 2**20


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
    return min(fits, -(-rows // sizes[-1]) * sizes[-1])
