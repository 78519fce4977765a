"""The packed product as a Hopper kernel: values and places arrive packed and are expanded in shared memory.

A step takes 32 bytes of index for 64 outputs. Each byte holds the places of two groups, so the bytes are fetched twice,
one copy above the other, beside the values of both halves of the groups: 64 rows, of which the lower 32 read the high
bits. From them come four planes of the weights, the groups' first to fourth inputs, by comparing and selecting, and
each is the right operand of one product on the matrix unit. The rows of x are its left operand, 64 of which are
multiplied whatever their number: by the data sheet half the time in which the weights arrive from memory. x comes
sorted into planes and steps, cheap as long as rows are few.

Where outputs make too few programs to keep the memory busy, the inputs are divided among several; XLA adds their
float32 sums, scales, shifts and rounds once. Bytes at the least: 9/16 of the dense bfloat16 kernel's, 5/16 of int8
values; besides x once per 64 outputs and the sums, small for up to 16 rows, both mostly in the L2 cache.

Only bfloat16: on float32 operands the matrix unit would round to TF32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from vit_jax.kernels import sharded
from vit_jax.kernels.dispatch import Implementation, other_gpu
from vit_jax.kernels.sparse24.xla import by_kernel
from vit_jax.kernels.windows import up

ROWS = 64
"""Rows of a program: what the matrix unit takes. With more the weights would be read and expanded again."""
OUT = 64
BYTES = 32
"""Bytes of index in a step, of 256 inputs."""
PROGRAMS = 132
"""As many as an H100 has processors; inputs are divided until there are so many."""
STEPS = 16
"""Most steps of a program, which is unrolled over them."""
STAGES = 2
X_STAGES = 4


class Tiles(NamedTuple):
    """How a product is divided.

    Attributes:
      rows: filled up to a multiple of 8.
      height: rows of a program.
      byte: bytes of index along the inputs.
      out: outputs.
      splits: parts of the inputs.
      steps: of each part.
    """

    rows: int
    height: int
    byte: int
    out: int
    splits: int
    steps: int


def tiles(rows: int, size: int, out: int) -> Tiles:
    """The division of ``[rows, size] @ [size, out]``."""
    rows, byte = up(rows, 8), size // 8
    steps = pl.cdiv(byte, BYTES)
    programs = out // OUT * pl.cdiv(rows, ROWS)
    parts = [d for d in range(1, steps + 1) if steps % d == 0]
    fits = [d for d in parts if d * programs >= PROGRAMS and steps // d <= STEPS]
    splits = min(fits, default=steps)
    return Tiles(rows, min(rows, ROWS), byte, out, splits, steps // splits)


def unsupported_reason(x: Any, values: Any, index: Any, bias: Any, scale: Any) -> str | None:
    """Why the kernel cannot run on these shapes and types."""
    if x.dtype != jnp.bfloat16:
        return f"x is {x.dtype}, not bfloat16, in which alone the matrix unit of a GPU is exact"
    if values.dtype not in (jnp.bfloat16, jnp.float32, jnp.int8):
        return f"values are {values.dtype}, not bfloat16, float32 or int8"
    if x.shape[-1] % 64 or x.shape[-1] < 8 * BYTES:
        return f"{x.shape[-1]} inputs are no multiple of 64, or fewer than {8 * BYTES}"
    if values.shape[-1] % OUT or not values.shape[-1]:
        return f"{values.shape[-1]} outputs are no multiple of {OUT}"
    return None if x.size else "x has no rows"


def slower_reason(x: Any, values: Any, index: Any, bias: Any, scale: Any) -> str | None:
    """Why another implementation should run unless this one is named."""
    if reason := other_gpu("9.0"):
        return reason
    if sharded.rows(x) > ROWS:
        return f"with {sharded.rows(x)} rows, above {ROWS}, the weights would be expanded more than once"
    return "float32 values would be cast first" if values.dtype == jnp.float32 else None


def _product(x: jax.Array, values: jax.Array, index: jax.Array, affine: jax.Array) -> Any:
    """``[rows, in] -> ([rows, out],)`` on one device, and no sums."""
    (rows, size), out = x.shape, values.shape[1]
    values = values if values.dtype == jnp.int8 else values.astype(x.dtype)
    t = tiles(rows, size, out)
    kernel = plgpu.kernel(
        functools.partial(_kernel, t),
        out_type=jax.ShapeDtypeStruct((t.splits, t.rows, out), jnp.float32),
        grid=(pl.cdiv(t.rows, ROWS), out // OUT, t.splits),
        grid_names=("rows", "out", "split"),
        kernel_name="sparse24",
        scratch_types=_scratch(values.dtype),
    )
    sums = jnp.sum(kernel(_planes(t, x), jnp.reshape(values, (4, t.byte, out)), index), axis=0)[:rows]
    return ((sums * affine[0:1] + affine[1:2]).astype(x.dtype),), ()


def _planes(t: Tiles, x: jax.Array) -> jax.Array:
    """``[rows, inputs] -> [steps, place, rows, 2 halves * 32]``; zeros where a step meets bytes of the one before."""
    at = np.minimum(np.arange(t.splits * t.steps) * BYTES, t.byte - BYTES)[:, None] + np.arange(BYTES)
    own = at >= np.arange(len(at))[:, None] * BYTES
    x = jnp.pad(x, ((0, t.rows - x.shape[0]), (0, 0)))
    groups = jnp.reshape(x, (t.rows, 2, t.byte, 4))[:, :, at]  # [rows, half, steps, 32, place]
    groups = jnp.where(jnp.asarray(own)[None, None, :, :, None], groups, jnp.zeros_like(groups))
    return jnp.reshape(jnp.transpose(groups, (2, 4, 0, 1, 3)), (-1, 4, t.rows, 2 * BYTES))


def _scratch(dtype: Any) -> dict[str, Any]:
    def tiled(stages: int, dtype: Any) -> Any:
        wide = min(OUT, 128 // jnp.dtype(dtype).itemsize)
        transforms = plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(wide * jnp.dtype(dtype).itemsize)
        shape = (stages, 64, OUT) if stages > 1 else (64, OUT)
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    return {
        "xs": tiled(X_STAGES, jnp.bfloat16),
        "values": tiled(2 * STAGES, dtype),
        "places": tiled(STAGES, jnp.uint8),
        "planes": tiled(2, jnp.bfloat16),
        "sums": tiled(1, jnp.float32),
        "full": plgpu.Barrier(num_arrivals=6, num_barriers=STAGES),
        "x_full": plgpu.Barrier(num_arrivals=1, num_barriers=X_STAGES),
    }


def _kernel(t: Tiles, x: Any, packed: Any, index: Any, y: Any, **s: Any) -> None:
    """One part of the inputs, 64 outputs, up to 64 rows, by one group of four warps.

    x ``[steps, 4, rows, 64]``, packed ``[4, byte, out]``, index ``[byte, out]``, y ``[splits, rows, out]``.
    """
    split, columns = jax.lax.axis_index("split"), pl.ds(jax.lax.axis_index("out") * OUT, OUT)
    # The last tile ends with the last row: rows it shares with the one before are computed twice, to the same bits.
    rows = pl.ds(pl.multiple_of(jnp.minimum(jax.lax.axis_index("rows") * ROWS, t.rows - t.height), 8), t.height)

    def fetch(step: int) -> None:
        stage = step % STAGES
        start = pl.multiple_of(jnp.minimum((split * t.steps + step) * BYTES, t.byte - BYTES), 8)
        for half in range(2):
            below = pl.ds(half * BYTES, BYTES)
            for slot in range(2):
                source = packed.at[2 * slot + half, pl.ds(start, BYTES), columns]
                plgpu.copy_gmem_to_smem(source, s["values"].at[2 * stage + slot, below], s["full"].at[stage])
            source = index.at[pl.ds(start, BYTES), columns]
            plgpu.copy_gmem_to_smem(source, s["places"].at[stage, below], s["full"].at[stage])

    def fetch_x(plane: int) -> None:
        step, place = divmod(plane, 4)
        stage = plane % X_STAGES
        # Rows behind the last stay as they are: whatever they hold reaches only sums that are not written.
        target = s["xs"].at[stage, pl.ds(0, t.height)]
        plgpu.copy_gmem_to_smem(x.at[split * t.steps + step, place, rows], target, s["x_full"].at[stage])

    for step in range(min(STAGES, t.steps)):
        fetch(step)
    for plane in range(min(X_STAGES, 4 * t.steps)):
        fetch_x(plane)
    multiply = functools.partial(_multiply, t, fetch, fetch_x, s)
    s["sums"][...] = pl.run_scoped(multiply, plgpu.ACC((64, OUT), jnp.float32))
    plgpu.commit_smem()  # the copy engine reads by another path than threads write
    plgpu.copy_smem_to_gmem(s["sums"].at[pl.ds(0, t.height)], y.at[split, rows, columns])
    plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the copy out of it


def _multiply(t: Tiles, fetch: Any, fetch_x: Any, s: Any, total: Any) -> jax.Array:
    zeros = jnp.zeros((64, OUT), jnp.bfloat16)
    upper = plgpu.broadcasted_iota(jnp.int32, (64, OUT), 0, layout=plgpu.Layout.WGMMA) < BYTES
    for step in range(t.steps):
        stage = step % STAGES
        plgpu.barrier_wait(s["full"].at[stage])  # all six copies have arrived
        code = plgpu.layout_cast(s["places"][stage].astype(jnp.int32), plgpu.Layout.WGMMA)
        code = jnp.where(upper, code & 15, code >> 4)
        one, two = (_value(s["values"], 2 * stage + slot) for slot in range(2))
        for place in range(4):
            plane = zeros
            if place > 0:  # the second value is never at the first place, nor the first at the last
                plane = jnp.where(code >> 2 == place, two, plane)
            if place < 3:
                plane = jnp.where(code & 3 == place, one, plane)
            number = 4 * step + place
            # The product that read this half of ``planes`` is the last but one, awaited below one round ago.
            s["planes"][number % 2] = plane
            plgpu.wgmma_wait(0)  # the last product is done with its x and with the other half
            # Makes the plane visible to the matrix unit, and holds every warp until all have written it, have read
            # this step's values and have awaited the last product: only now may copies overwrite these.
            plgpu.commit_smem()
            if place == 0 and step + STAGES < t.steps:
                fetch(step + STAGES)
            if number > 0 and number - 1 + X_STAGES < 4 * t.steps:
                fetch_x(number - 1 + X_STAGES)
            plgpu.barrier_wait(s["x_full"].at[number % X_STAGES])
            plgpu.wgmma(total, s["xs"].at[number % X_STAGES], s["planes"].at[number % 2])
    return total[...]  # awaits the last product


def _value(values: Any, at: int) -> jax.Array:
    return plgpu.layout_cast(values[at].astype(jnp.bfloat16), plgpu.Layout.WGMMA)


IMPLEMENTATION = Implementation(by_kernel(_product), unsupported_reason, slower_reason, platform="gpu")
