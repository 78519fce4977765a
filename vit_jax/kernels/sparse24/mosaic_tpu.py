"""The packed product as a TPU kernel: values and places arrive packed and are expanded beside the matrix unit.

A byte of ``index`` holds the places of two groups that lie half the groups apart, so a block of bytes ``[tile, out]``
belongs to two such halves of the groups, four planes each: the first, second, third and fourth inputs. A plane is the
block of values where the place says so, else zero: compare and select, no gather. Outside the kernel the inputs are
sorted into the same eight planes, cheap as long as rows are few, which is when packing pays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import sharded
from vit_jax.kernels import tiles as pins
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.products import dot
from vit_jax.kernels.sparse24.xla import by_kernel

ROWS = 256
"""Rows of a block. Up to about as many the weights' bytes decide, beyond them the arithmetic (v5e: 240)."""
BLOCK = 2**16
"""Bytes of index in a block, 512 K weights: blocks enough to overlap, each large against the price of a step."""


class Tiles(NamedTuple):
    """Extents of a block: rows, outputs, and bytes of index along the inputs."""

    rows: int
    out: int
    byte: int


def tiles(rows: int, size: int, out: int) -> Tiles | None:
    """The blocks of ``[rows, size] @ [size, out]``; None if the inputs cannot be cut.

    Rows and outputs may end within a block. Inputs may not: what lies behind them would be added in.
    """
    byte = size // 8
    fits = [byte] if byte <= 512 else [t for t in (512, 384, 256, 128) if byte % t == 0]
    if size % 8 or not fits:
        return None
    steps = pl.cdiv(out, min(BLOCK // fits[0] // 128 * 128, 1024))
    wide = pl.cdiv(out, 128 * steps) * 128
    return Tiles(min(rows, ROWS), min(pins.of("sparse24") or wide, out), fits[0])


def unsupported_reason(x: Any, values: Any, index: Any, bias: Any, scale: Any) -> str | None:
    """Why the kernel cannot run on these shapes and types."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x is {x.dtype}, not bfloat16 or float32"
    if values.dtype not in (jnp.bfloat16, jnp.float32, jnp.int8):
        return f"values are {values.dtype}, not bfloat16, float32 or int8"
    if tiles(sharded.rows(x), x.shape[-1], values.shape[-1]) is None:
        return f"{x.shape[-1]} inputs are no multiple of 8, or above 4,096 none of 1,024"
    return None if x.size else "x has no rows"


def slower_reason(x: Any, values: Any, index: Any, bias: Any, scale: Any) -> str | None:
    """Why unpacking first is faster."""
    if sharded.rows(x) > ROWS:
        return f"with {sharded.rows(x)} rows, above {ROWS}, arithmetic decides, of which packed weights save none"
    return None


def _product(x: jax.Array, values: jax.Array, index: jax.Array, affine: jax.Array) -> Any:
    """``[rows, in] -> ([rows, out],)`` on one device, and no sums."""
    (rows, size), out = x.shape, values.shape[1]
    byte = size // 8
    tile = tiles(rows, size, out)
    assert tile is not None
    planes = jnp.transpose(jnp.reshape(x, (rows, 2, byte, 4)), (1, 3, 0, 2))
    y = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((rows, out), x.dtype),
        grid=(pl.cdiv(rows, tile.rows), pl.cdiv(out, tile.out), byte // tile.byte),
        in_specs=[
            pl.BlockSpec((8, tile.rows, tile.byte), lambda r, o, k: (0, r, k)),
            pl.BlockSpec((4, tile.byte, tile.out), lambda r, o, k: (0, k, o)),
            pl.BlockSpec((tile.byte, tile.out), lambda r, o, k: (k, o)),
            pl.BlockSpec((2, tile.out), lambda r, o, k: (0, o)),
        ],
        out_specs=pl.BlockSpec((tile.rows, tile.out), lambda r, o, k: (r, o)),
        scratch_shapes=[pltpu.VMEM((tile.rows, tile.out), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="sparse24",
    )(jnp.reshape(planes, (8, rows, byte)), jnp.reshape(values, (4, byte, out)), index, affine)
    return (y,), ()


def _kernel(x: Any, values: Any, index: Any, affine: Any, y: Any, total: Any) -> None:
    """One block. x ``[8, rows, byte]``, values ``[4, byte, out]``, index ``[byte, out]``, affine ``[2, out]``."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    places = index[...].astype(jnp.int32)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    for half in range(2):
        # 32-bit lanes: vector units before v6e have no arithmetic in fewer.
        first, second = (values[slot + half].astype(jnp.float32) for slot in (0, 2))
        one, two = (places & 3 << 4 * half), (places & 12 << 4 * half)
        for place in range(4):
            plane = jnp.zeros_like(first)
            if place > 0:  # the second value is never at the first place, nor the first at the last
                plane = jnp.where(two == place << 4 * half + 2, second, plane)
            if place < 3:
                plane = jnp.where(one == place << 4 * half, first, plane)
            total[...] += dot(x[4 * half + place], plane.astype(x.dtype), 1, 0, precision)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        y[...] = (total[...] * affine[0:1, :] + affine[1:2, :]).astype(y.dtype)


IMPLEMENTATION = Implementation(by_kernel(_product), unsupported_reason, slower_reason, platform="tpu")
