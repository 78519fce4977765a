"""The block-diagonal product as a Pallas kernel for TPUs: blocks are read and written where they lie.

``vit_jax.kernels.block_diagonal.tiling`` says how. The grid goes over groups of blocks and tiles of rows, rows fastest,
so that a group's weight arrives once and its gradient stays on the chip while it is added up, in float32. On a mesh
every device runs the kernel on its rows, since jit does not divide a Pallas call.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import vmem
from vit_jax.kernels.block_diagonal.tiling import Tiling, lay_out, take_back, tiling
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.products import bias_gradient, differentiable, dot, shift
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.windows import merged, no_less_work

UNROLLED = 64
"""Most blocks of a group: the kernel is unrolled over them."""
ROWS = (1024, 512, 256, 16)
"""Most rows of a tile: the first of which :data:`TILES` are there, or the last but one; the last divides them."""
TILES = 8
"""What the first tile waits for overlaps with nothing, nor what the last one leaves."""


def run(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [..., n * in]``; see ``vit_jax.kernels.block_diagonal``."""
    y = _product(jnp.reshape(x, (-1, x.shape[-1])), kernel, bias)
    return jnp.reshape(y, (*x.shape[:-1], y.shape[-1]))


def unsupported_reason(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> str | None:
    """Why the kernel cannot run this product, as the end of a sentence, or None. Arrays or shapes."""
    plan = tiling(*kernel.shape)
    if reason := vmem.unsupported_rows(x):
        return reason
    if len(plan.sources) > UNROLLED:
        return f"{len(plan.sources)} blocks that begin within registers are more than the {UNROLLED} it is unrolled for"
    return vmem.excess("its backward", _vmem(plan, x.dtype.itemsize, ROWS[-1], backward=True))


def slower_reason(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> str | None:
    """Why another product would be less work, as the end of a sentence, or None. Arrays or shapes."""
    n, size, features = kernel.shape
    return no_less_work(tiling(n, size, features).area, n * size, n * features)


def _vmem(plan: Tiling, itemsize: int, rows: int, backward: bool) -> int:
    """Bytes that a kernel needs for tiles of ``rows``: everything that moves twice, float32 values once."""
    _, height, width = plan.shape
    weight = height * width * (2 * itemsize + 8 * backward)
    moving = (1 + backward) * plan.inputs + plan.outputs
    between = 2 * max(plan.inputs, plan.outputs) + width
    return weight + rows * (2 * itemsize * moving + 4 * between)


def _tile(plan: Tiling, x: jax.Array, backward: bool) -> int:
    most = next((size for size in ROWS[:-2] if x.shape[0] >= TILES * size), ROWS[-2])
    need = lambda rows: _vmem(plan, x.dtype.itemsize, rows, backward)  # noqa: E731
    return vmem.even("block_diagonal", (most, ROWS[-1]), x.shape[0], need)


def _gradients(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, g: jax.Array) -> tuple[Any, ...]:
    plan, g = tiling(*kernel.shape), g.astype(x.dtype)
    weight = lay_out(plan, kernel.astype(x.dtype))
    (dx,), (dweight,) = shard_rows(functools.partial(_backward, plan), (x, g), (weight,))
    return dx, take_back(plan, dweight).astype(kernel.dtype), bias_gradient(g, bias)


@differentiable(_gradients)
def _product(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """``[rows, n * in] -> [rows, n * out]``."""
    plan = tiling(*kernel.shape)
    whole = lay_out(plan, kernel.astype(x.dtype)), shift(bias, kernel.shape[0] * kernel.shape[2])
    (y,), _ = shard_rows(functools.partial(_forward, plan), (x,), whole)
    return y


def _call(body: Any, name: str, plan: Tiling, tile: int, rows: int, **kwargs: Any) -> Any:
    """A call over groups and, faster, tiles of rows."""
    params = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem.budget())
    grid = (plan.groups, pl.cdiv(rows, tile))
    return pl.pallas_call(functools.partial(body, plan), name=name, grid=grid, compiler_params=params, **kwargs)


def _rows(tile: int, width: int) -> pl.BlockSpec:
    """A tile of rows of a group's columns."""
    return pl.BlockSpec((tile, width), lambda group, row: (row, group))


def _weight(plan: Tiling) -> pl.BlockSpec:
    return pl.BlockSpec((None, *plan.shape[1:]), lambda group, row: (group, 0, 0))


def _forward(plan: Tiling, x: jax.Array, weight: jax.Array, bias: jax.Array) -> Any:
    tile = _tile(plan, x, backward=False)
    added = pl.BlockSpec((1, plan.outputs), lambda group, row: (0, group))
    y = _call(
        _forward_kernel, "block_diagonal_forward", plan, tile, x.shape[0],
        in_specs=[_rows(tile, plan.inputs), _weight(plan), added],
        out_specs=_rows(tile, plan.outputs),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], bias.shape[1]), x.dtype),
    )(x, weight, bias)  # fmt: skip
    return (y,), ()


def _backward(plan: Tiling, x: jax.Array, g: jax.Array, weight: jax.Array) -> Any:
    tile = _tile(plan, x, backward=True)
    dx, dweight = _call(
        functools.partial(_backward_kernel, x.shape[0]), "block_diagonal_backward", plan, tile, x.shape[0],
        in_specs=[_rows(tile, plan.inputs), _rows(tile, plan.outputs), _weight(plan)],
        out_specs=[_rows(tile, plan.inputs), _weight(plan)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(weight.shape, jnp.float32)],
    )(x, g, weight)  # fmt: skip
    return (dx,), (dweight,)


def _forward_kernel(plan: Tiling, x: Any, weight: Any, bias: Any, y: Any) -> None:
    pieces = []
    for source, target in zip(plan.sources, plan.targets, strict=True):
        pieces.append(dot(x[:, source.columns], weight[source.rows, : target.stop - target.start], 1, 0))
    for columns, value in merged(plan.targets, pieces):
        y[:, columns] = (value + bias[:, columns]).astype(y.dtype)


def _backward_kernel(rows: int, plan: Tiling, x: Any, g: Any, weight: Any, dx: Any, dweight: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        dweight[...] = jnp.zeros_like(dweight)

    def read(ref: Any, columns: slice) -> jax.Array:
        return vmem.inside(ref[:, columns], pl.program_id(1), rows)

    pieces = []
    for source, target in zip(plan.sources, plan.targets, strict=True):
        u, h, width = read(x, source.columns), read(g, target.columns), target.stop - target.start
        dweight[source.rows, :width] += dot(u, h, 0, 0)
        pieces.append(dot(h, weight[source.rows, :width], 1, 1))
    for columns, value in merged(plan.sources, pieces):
        dx[:, columns] = value.astype(dx.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
