"""The Monarch product as one Pallas kernel for TPUs: both factors, with the intermediate in VMEM.

``vit_jax.kernels.monarch.tiling`` says how the parameters lie. The forward goes over tiles of rows; the backward too,
recomputes the intermediate, and adds up both factors' gradients in float32. On a mesh every device runs the kernel on
its rows, since jit does not divide a Pallas call.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.monarch.layout import Sizes, in_natural_order
from vit_jax.kernels.monarch.tiling import Tiling, exchange, lay_out, take_back, tiling
from vit_jax.kernels.products import bias_gradient, differentiable, dot, shift
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.windows import merged, no_less_work

UNROLLED = 64
"""Most windows on either side: the kernel is unrolled over them."""
ROWS = (512, 256, 128, 64, 32, 16)
"""Rows of a tile, the first that fits into VMEM."""


def unsupported_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the kernel cannot run this product, as the end of a sentence, or None."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    if reason := vmem.unsupported_rows(x):
        return reason
    if max(sizes.K * sizes.parts, sizes.L) > UNROLLED:
        return f"{max(sizes.K * sizes.parts, sizes.L)} chunks are more than the {UNROLLED} it is unrolled for"
    return vmem.excess("its backward", _vmem(tiling(sizes), x.dtype.itemsize, ROWS[-1], backward=True))


def slower_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why a dense product would be faster, as the end of a sentence, or None."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    return no_less_work(tiling(sizes).area, sizes.inputs, sizes.outputs)


def _vmem(plan: Tiling, itemsize: int, rows: int, backward: bool) -> int:
    """Bytes that a kernel needs for tiles of ``rows``: moving blocks twice, weights once, float32 in between."""
    n, m, (w1, w2) = plan.sizes.inputs, plan.sizes.outputs, plan.shapes
    middle = plan.sizes.K * plan.sizes.L * plan.slot
    if backward:
        moving, between, weight = 2 * n + m, w1[0] + 4 * middle, itemsize + 8
    else:
        moving, between, weight = n + m, w2[0] + 2 * middle, itemsize
    return plan.area * weight + rows * (2 * itemsize * moving + 4 * between)


def _tile(plan: Tiling, x: jax.Array, backward: bool) -> int:
    return vmem.tile(ROWS, x.shape[0], lambda rows: _vmem(plan, x.dtype.itemsize, rows, backward))


def _gradients(
    sizes: Sizes, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, g: jax.Array
) -> tuple[Any, ...]:
    plan, g = tiling(sizes), g.astype(x.dtype)
    weights = lay_out(plan, kernel_1.astype(x.dtype), kernel_2.astype(x.dtype))
    (dx,), sums = shard_rows(functools.partial(_backward, plan), (x, g), weights)
    d1, d2 = take_back(plan, *sums)
    return dx, d1.astype(kernel_1.dtype), d2.astype(kernel_2.dtype), bias_gradient(g, bias)


@in_natural_order
@differentiable(_gradients, static=1)
def run(sizes: Sizes, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None) -> jax.Array:
    plan = tiling(sizes)
    weights = lay_out(plan, kernel_1.astype(x.dtype), kernel_2.astype(x.dtype))
    (y,), _ = shard_rows(functools.partial(_forward, plan), (x,), (*weights, shift(bias, sizes.outputs)))
    return y


def _forward(plan: Tiling, x: jax.Array, w1: jax.Array, w2: jax.Array, bias: jax.Array) -> Any:
    tile = _tile(plan, x, backward=False)
    y = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        name="monarch_forward",
        grid=(pl.cdiv(x.shape[0], tile),),
        in_specs=[_rows(tile, x.shape[1]), *map(_weight, (w1, w2, bias))],
        out_specs=_rows(tile, plan.sizes.outputs),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], plan.sizes.outputs), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=vmem.budget()),
    )(x, w1, w2, bias)
    return (y,), ()


def _backward(plan: Tiling, x: jax.Array, g: jax.Array, w1: jax.Array, w2: jax.Array) -> Any:
    tile = _tile(plan, x, backward=True)
    arrays = (x, x.dtype), (w1, jnp.float32), (w2, jnp.float32)
    dx, *sums = pl.pallas_call(
        functools.partial(_backward_kernel, plan, x.shape[0]),
        name="monarch_backward",
        grid=(pl.cdiv(x.shape[0], tile),),
        in_specs=[_rows(tile, x.shape[1]), _rows(tile, g.shape[1]), *map(_weight, (w1, w2))],
        out_specs=[_rows(tile, x.shape[1]), *(pl.BlockSpec(w.shape, lambda i: (0, 0)) for w in (w1, w2))],
        out_shape=[jax.ShapeDtypeStruct(a.shape, dtype) for a, dtype in arrays],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem.budget()),
    )(x, g, w1, w2)
    return (dx,), tuple(sums)


def _rows(tile: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((tile, width), lambda i: (i, 0))


def _weight(x: jax.Array) -> pl.BlockSpec:
    """The whole array for every tile, once in VMEM."""
    return pl.BlockSpec(x.shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1))


def _forward_kernel(plan: Tiling, x: Any, w1: Any, w2: Any, bias: Any, y: Any) -> None:
    sources = [[x[:, w.columns] for w in windows] for windows in plan.sources]
    middle = _middle(plan, sources, w1)
    pieces = [dot(z, w2[w.rows], 1, 1) for z, w in zip(middle, plan.targets, strict=True)]
    for columns, value in merged(plan.targets, pieces):
        y[:, columns] = (value + bias[:, columns]).astype(y.dtype)


def _middle(plan: Tiling, sources: Any, w1: Any) -> list[jax.Array]:
    """The intermediate as the second factor wants it, in the type of the weights."""
    blocks = []
    for values, windows in zip(sources, plan.sources, strict=True):
        products = [dot(u, w1[w.rows], 1, 0) for u, w in zip(values, windows, strict=True)]
        blocks.append(functools.reduce(lambda a, b: a + b, products))
    return [z.astype(w1.dtype) for z in exchange(plan, blocks, -1)]


def _backward_kernel(plan: Tiling, rows: int, x: Any, g: Any, w1: Any, w2: Any, dx: Any, dw1: Any, dw2: Any) -> None:
    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        dw1[...] = jnp.zeros_like(dw1)
        dw2[...] = jnp.zeros_like(dw2)

    def read(ref: Any, columns: slice) -> jax.Array:
        return vmem.inside(ref[:, columns], pl.program_id(0), rows)

    sources = [[read(x, w.columns) for w in windows] for windows in plan.sources]
    targets = [read(g, w.columns) for w in plan.targets]
    back = []
    for z, u, w in zip(_middle(plan, sources, w1), targets, plan.targets, strict=True):
        dw2[w.rows] += dot(u, z, 0, 0)
        back.append(dot(u, w2[w.rows], 1, 0))
    pieces = []
    for h, values, windows in zip(exchange(plan, back, 1), sources, plan.sources, strict=True):
        low = h.astype(w1.dtype)
        for u, w in zip(values, windows, strict=True):
            dw1[w.rows] += dot(u, low, 0, 0)
            pieces.append(dot(low, w1[w.rows], 1, 1))
    for columns, value in merged(plan.flat_sources, pieces):
        dx[:, columns] = value.astype(dx.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
