"""Tiles of rows in the vector memory of a TPU: how many fit, and what lies behind the last row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax import sharding
from vit_jax.kernels import tiles
from vit_jax.kernels.windows import LANES, up


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


def even(kernel: str, sizes: Sequence[int], rows: int, need: Callable[[int], int]) -> int:
    """Rows of a tile, so that all are nearly full: those of the fewest tiles that fit, or all where one is enough.

    Args:
      kernel: its name; what is pinned for it (:mod:`vit_jax.kernels.tiles`) is the answer.
      sizes: the first is the most rows, the last divides those of a tile among several and is taken if none fits.
      rows: that there are.
      need: bytes of VMEM that the kernel takes with so many rows in a tile.
    """
    if pinned := tiles.of(kernel):
        return pinned
    count = -(-rows // sizes[0])
    size = rows if count == 1 else up(-(-rows // count), sizes[-1])
    while size > sizes[-1] and need(size) > budget():
        count += 1
        size = up(-(-rows // count), sizes[-1])
    return size


def images(x: jax.Array) -> jax.Array:
    """``[..., n]`` -> ``[B, N, n]`` where the rows of an image are enough for a tile, else ``[rows, n]``.

    N rows that are no multiple of 8 lie apart from those of the next image, so that to merge the axes is a copy.
    """
    apart = x.ndim > 2 and x.shape[-2] >= LANES
    return jnp.reshape(x, (-1, *x.shape[-2:]) if apart else (-1, x.shape[-1]))


def over_rows(
    kernel: Any,
    name: str,
    tile: int,
    rows: Sequence[jax.Array],
    whole: Sequence[jax.Array],
    outputs: Sequence[int],
    sums: Sequence[tuple[int, ...]],
) -> list[jax.Array]:
    """A kernel over tiles of rows.

    Args:
      kernel: is called with tiles ``[tile, n]`` of ``rows``, ``whole``, tiles of the outputs, and the sums.
      name: of the kernel.
      tile: rows of one.
      rows: arrays ``[N, n]`` or ``[B, N, n]`` of one type.
      whole: arrays that are in VMEM once.
      outputs: widths of the outputs, which have the type of ``rows``.
      sums: shapes of what is added up in float32, zeros at first.
    """
    several = [x if x.ndim == 3 else x[None] for x in rows]
    images, count, _ = several[0].shape
    zero = lambda shape: lambda *_: (0,) * len(shape)  # noqa: E731
    once = lambda shape: pl.BlockSpec(shape, zero(shape), pipeline_mode=pl.Buffered(1))  # noqa: E731
    tiled = lambda n: pl.BlockSpec((None, tile, n), lambda image, i: (image, i, 0))  # noqa: E731

    def body(*refs: Any) -> None:
        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _() -> None:
            for ref in refs[len(refs) - len(sums) :]:
                ref[...] = jnp.zeros_like(ref)

        kernel(*refs)

    found = pl.pallas_call(
        body if sums else kernel,
        name=name,
        grid=(images, pl.cdiv(count, tile)),
        in_specs=[*(tiled(x.shape[-1]) for x in several), *(once(w.shape) for w in whole)],
        out_specs=[*map(tiled, outputs), *map(once, sums)],
        out_shape=[
            *(jax.ShapeDtypeStruct((images, count, n), rows[0].dtype) for n in outputs),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if sums else "parallel",) * 2, vmem_limit_bytes=budget()
        ),
    )(*several, *whole)
    wide = [jnp.reshape(y, (*rows[0].shape[:-1], y.shape[-1])) for y in found[: len(outputs)]]
    return [*wide, *found[len(outputs) :]]
