"""The Monarch product as one Pallas kernel for TPUs: both factors, with the intermediate in VMEM.

``vit_jax.kernels.monarch.tiling`` says how the parameters lie. The forward goes over tiles of rows; the backward too,
recomputes the intermediate, and adds up the gradients of both factors and of the bias in float32. On a mesh every
device runs the kernel on its rows, since jit does not divide a Pallas call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_jax.kernels import vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.monarch.layout import Sizes, blocked_bias
from vit_jax.kernels.monarch.tiling import Tiling, exchange, lay_out, take_back, tiling
from vit_jax.kernels.products import differentiable, dot, shift
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.windows import merged, no_less_work

UNROLLED = 64
"""Most windows on either side: the kernel is unrolled over them."""
ROWS = (640, 16)
"""Most rows of a tile, such as all 577 of an image of 384 px, and what divides those of several."""


def unsupported_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the kernel cannot run this product, as the end of a sentence, or None."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    if reason := vmem.unsupported_rows(x):
        return reason
    if max(sizes.K * sizes.parts, sizes.L) > UNROLLED:
        return f"{max(sizes.K * sizes.parts, sizes.L)} chunks are more than the {UNROLLED} it is unrolled for"
    return vmem.excess("its backward", _vmem(tiling(sizes, blocked), x.dtype.itemsize, ROWS[-1], backward=True))


def slower_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why a dense product would be faster, as the end of a sentence, or None."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    return no_less_work(tiling(sizes, blocked).area, sizes.inputs, sizes.outputs)


def _vmem(plan: Tiling, itemsize: int, rows: int, backward: bool) -> int:
    """Bytes that a kernel needs for tiles of ``rows``: moving blocks twice, weights once, float32 in between."""
    n, m, ((_, _, tall), (_, wide, _)) = plan.sizes.inputs, plan.sizes.outputs, plan.shapes
    middle = plan.slots.L * plan.slots.after
    if backward:
        moving, between, weight = 2 * n + m, plan.slots.K * tall + 4 * middle, itemsize + 4
    else:
        moving, between, weight = n + m, plan.slots.L * wide + 2 * middle, itemsize
    return plan.size * weight + rows * (2 * itemsize * moving + 4 * between)


def _tile(plan: Tiling, x: jax.Array, backward: bool) -> int:
    return vmem.even("monarch", ROWS, x.shape[-2], lambda rows: _vmem(plan, x.dtype.itemsize, rows, backward))


def run(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> jax.Array:
    """The product of ``x [..., n]``; see ``vit_jax.kernels.monarch``."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    arranged = blocked_bias(sizes, bias) if blocked and bias is not None else bias
    y = _product(tiling(sizes, blocked), vmem.images(x), kernel_1, kernel_2, arranged)
    return jnp.reshape(y, (*x.shape[:-1], sizes.outputs))


def _gradients(
    plan: Tiling, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, g: jax.Array
) -> tuple[Any, ...]:
    weights = lay_out(plan, kernel_1.astype(x.dtype), kernel_2.astype(x.dtype))
    (dx,), (*sums, db) = shard_rows(functools.partial(_backward, plan), (x, g.astype(x.dtype)), weights)
    d1, d2 = take_back(plan, *sums)
    return dx, d1.astype(kernel_1.dtype), d2.astype(kernel_2.dtype), None if bias is None else db[0].astype(bias.dtype)


@differentiable(_gradients, static=1)
def _product(plan: Tiling, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None) -> jax.Array:
    weights = lay_out(plan, kernel_1.astype(x.dtype), kernel_2.astype(x.dtype))
    (y,), _ = shard_rows(functools.partial(_forward, plan), (x,), (*weights, shift(bias, plan.sizes.outputs)))
    return y


def _forward(plan: Tiling, x: jax.Array, w1: jax.Array, w2: jax.Array, bias: jax.Array) -> Any:
    kernel = functools.partial(_forward_kernel, plan)
    (y,) = vmem.over_rows(
        kernel, "monarch_forward", _tile(plan, x, False), (x,), (w1, w2, bias), (plan.sizes.outputs,), ()
    )
    return (y,), ()


def _backward(plan: Tiling, x: jax.Array, g: jax.Array, w1: jax.Array, w2: jax.Array) -> Any:
    kernel = functools.partial(_backward_kernel, plan, x.shape[-2])
    sums = w1.shape, w2.shape, (1, plan.sizes.outputs)
    tile = _tile(plan, x, backward=True)
    dx, *found = vmem.over_rows(kernel, "monarch_backward", tile, (x, g), (w1, w2), (plan.sizes.inputs,), sums)
    return (dx,), tuple(found)


def _forward_kernel(plan: Tiling, x: Any, w1: Any, w2: Any, bias: Any, y: Any) -> None:
    outward(plan, middle(plan, [[x[:, w.columns] for w in windows] for windows in plan.sources], w1), w2, bias, y)


def _backward_kernel(
    plan: Tiling, rows: int, x: Any, g: Any, w1: Any, w2: Any, dx: Any, dw1: Any, dw2: Any, db: Any
) -> None:
    sources, targets = read(plan, rows, x), read_targets(plan, rows, g)
    back = outward_back(middle(plan, sources, w1), targets, w2, dw2)
    write(plan, middle_back(plan, back, sources, w1, dw1), dx)
    db[...] += jnp.sum(vmem.inside(g[...], pl.program_id(1), rows).astype(jnp.float32), axis=0, keepdims=True)


def read(plan: Tiling, rows: int, x: Any) -> list[list[jax.Array]]:
    """The windows of the input, zeros behind the last of ``rows``."""
    return [[vmem.inside(x[:, w.columns], pl.program_id(1), rows) for w in windows] for windows in plan.sources]


def read_targets(plan: Tiling, rows: int, g: Any) -> list[jax.Array]:
    """The windows of the output's gradient, zeros behind the last of ``rows``."""
    return [vmem.inside(g[:, w.columns], pl.program_id(1), rows) for w in plan.targets]


def middle(plan: Tiling, sources: Sequence[Sequence[jax.Array]], w1: Any) -> list[jax.Array]:
    """The intermediate as the second factor wants it, in the type of the weights."""
    blocks = []
    for k, (values, windows) in enumerate(zip(sources, plan.sources, strict=True)):
        products = [dot(u, w1[k, :, w.rows], 1, 1) for u, w in zip(values, windows, strict=True)]
        blocks.append(functools.reduce(lambda a, b: a + b, products))
    return [z.astype(w1.dtype) for z in exchange(plan.slots, blocks)]


def outward(plan: Tiling, middle: Sequence[jax.Array], w2: Any, bias: Any, y: Any) -> None:
    """Writes the output."""
    pieces = [
        dot(z, w2[i, : w.stop - w.start], 1, 1) for i, (z, w) in enumerate(zip(middle, plan.targets, strict=True))
    ]
    for columns, value in merged(plan.targets, pieces):
        y[:, columns] = (value + bias[:, columns]).astype(y.dtype)


def outward_back(middle: Sequence[jax.Array], targets: Sequence[jax.Array], w2: Any, dw2: Any) -> list[jax.Array]:
    """The gradient of the intermediate; adds that of the second factor."""
    back = []
    for i, (z, u) in enumerate(zip(middle, targets, strict=True)):
        dw2[i, : u.shape[1]] += dot(u, z, 0, 0)
        back.append(dot(u, w2[i, : u.shape[1]], 1, 0))
    return back


def middle_back(
    plan: Tiling, back: Sequence[jax.Array], sources: Sequence[Sequence[jax.Array]], w1: Any, dw1: Any
) -> list[jax.Array]:
    """The gradient of every window of the input; adds that of the first factor."""
    pieces = []
    blocks = exchange(plan.slots, back, back=True)
    for k, (h, values, windows) in enumerate(zip(blocks, sources, plan.sources, strict=True)):
        low = h.astype(w1.dtype)
        for u, w in zip(values, windows, strict=True):
            dw1[k, :, w.rows] += dot(low, u, 0, 0)
            pieces.append(dot(low, w1[k, :, w.rows], 1, 0))
    return pieces


def write(plan: Tiling, pieces: Sequence[jax.Array], dx: Any) -> None:
    """Writes the gradient of the input."""
    for columns, value in merged(plan.flat_sources, pieces):
        dx[:, columns] = value.astype(dx.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
