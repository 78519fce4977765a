"""The block-sparse product as Pallas kernels for TPUs that visit only the blocks there are.

A tile of rows keeps its activations in VMEM, and the whole kernel is there too. For every block of results a loop goes
over the list of its blocks, whose places arrive as prefetched scalars: so the index may be data, and lists may be of
any length. Forward, the lists are the rows of the index; for the gradient of x they are the same blocks sorted by
input, empty where nobody reads one, which leaves zeros. The gradient of the kernel adds up in VMEM over all rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import products, sharded, vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.windows import LANES
from vit_jax.types import Array

ROWS = (2048, 16)
"""Most rows of a tile, and what divides those of several. A step of the kernel costs much beside few rows."""


class Blocks(NamedTuple):
    """The blocks of the kernel in the order of the results they go into, int32.

    Attributes:
      start: ``[results + 1]``, where the blocks of each result begin.
      source: ``[n]``, which block of the operand it multiplies.
      slot: ``[n]``, its place along the first axis of the kernel.
      column: ``[n]``, its output block.
    """

    start: jax.Array
    source: jax.Array
    slot: jax.Array
    column: jax.Array


def run(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [rows, in]``; see ``vit_jax.kernels.block_sparse``."""
    return _product(x, kernel, jnp.asarray(index, jnp.int32), bias)


def unsupported_reason(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> str | None:
    """Why the kernels cannot run this product, as the end of a sentence, or None."""
    if reason := vmem.unsupported_rows(x):
        return reason
    if kernel.shape[1] % LANES:
        return f"blocks of {kernel.shape[1]} are no multiple of the {LANES} lanes of a register"
    return vmem.excess("its gradient", max(_vmem(x, kernel, ROWS[-1])))


def slower_reason(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> str | None:
    """Why a dense product would be faster, as the end of a sentence, or None."""
    return "every block is there" if kernel.shape[0] * kernel.shape[1] >= x.shape[1] else None


def _vmem(x: jax.Array, kernel: jax.Array, rows: int) -> tuple[int, int, int]:
    """Bytes of the forward, the gradient of x and that of the kernel: what comes and goes is there twice."""
    (_, b, out), size, item = kernel.shape, x.shape[1], x.dtype.itemsize
    weight, block = kernel.size * item, rows * b * (2 * item + 4)
    moving = 2 * rows * item
    return weight + moving * size + block, weight + moving * out + block, kernel.size * 8 + moving * (size + b) + block


def _tile(x: jax.Array, kernel: jax.Array, which: int) -> int:
    return vmem.even("block_sparse", ROWS, sharded.rows(x), lambda rows: _vmem(x, kernel, rows)[which])


def _gradients(x: jax.Array, kernel: jax.Array, index: jax.Array, bias: Any, g: jax.Array) -> tuple[Any, ...]:
    g, inputs = g.astype(x.dtype), x.shape[1]
    blocks = by_input(index, inputs // kernel.shape[1])
    f = functools.partial(_blocks, "block_sparse_input_gradient", True, _tile(x, kernel, 1))
    (dx,), _ = sharded.shard_rows(f, (g,), (blocks, kernel.astype(x.dtype), products.shift(None, inputs)))
    f = functools.partial(_outer, kernel.shape[1], _tile(x, kernel, 2))
    _, dkernel = sharded.shard_rows(f, (x, g), (index,))
    return dx, dkernel.astype(kernel.dtype), None, products.bias_gradient(g, bias)


@products.differentiable(_gradients)
def _product(x: jax.Array, kernel: jax.Array, index: jax.Array, bias: jax.Array | None) -> jax.Array:
    f = functools.partial(_blocks, "block_sparse_forward", False, _tile(x, kernel, 0))
    whole = by_output(index), kernel.astype(x.dtype), products.shift(bias, kernel.shape[2])
    (y,), _ = sharded.shard_rows(f, (x,), whole)
    return y


def by_output(index: jax.Array) -> Blocks:
    """The blocks of ``index [out_blocks, per]`` as the forward takes them."""
    columns, per = index.shape
    n = jnp.arange(columns * per, dtype=jnp.int32)
    return Blocks(jnp.arange(columns + 1, dtype=jnp.int32) * per, jnp.reshape(index, -1), n % per, n // per)


def by_input(index: jax.Array, in_blocks: int) -> Blocks:
    """The same blocks sorted by input, as the gradient of x takes them."""
    start, flat = by_output(index), jnp.reshape(index, -1)
    order = jnp.argsort(flat, stable=True)
    edges = jnp.searchsorted(flat[order], jnp.arange(in_blocks + 1, dtype=jnp.int32)).astype(jnp.int32)
    return Blocks(edges, start.column[order], start.slot[order], start.column[order])


def _blocks(
    name: str, transposed: bool, tile: int, x: jax.Array, blocks: Blocks, kernel: jax.Array, shift: jax.Array
) -> Any:
    """``[rows, operand] -> [rows, results]``: ``shift [1, results]`` and every result's blocks of the kernel."""
    results, b = blocks.start.shape[0] - 1, kernel.shape[1]
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(blocks),
        grid=(pl.cdiv(x.shape[0], tile), results),
        in_specs=[
            pl.BlockSpec((tile, x.shape[1]), lambda r, i, *_: (r, 0)),
            pl.BlockSpec(kernel.shape, lambda r, i, *_: (0, 0, 0), pipeline_mode=pl.Buffered(1)),
            pl.BlockSpec((1, b), lambda r, i, *_: (0, i)),
        ],
        out_specs=pl.BlockSpec((tile, b), lambda r, i, *_: (r, i)),
        scratch_shapes=[pltpu.VMEM((tile, b), jnp.float32)],
    )
    y = pl.pallas_call(
        functools.partial(_blocks_kernel, transposed),
        name=name,
        grid_spec=spec,
        out_shape=jax.ShapeDtypeStruct((x.shape[0], results * b), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem.budget() * 3 // 2
        ),
    )(*blocks, x, kernel, shift)
    return (y,), ()


def _blocks_kernel(
    transposed: bool, start: Any, source: Any, slot: Any, column: Any, x: Any, w: Any, shift: Any, y: Any, total: Any
) -> None:
    result, b = pl.program_id(1), y.shape[1]
    total[...] = jnp.zeros_like(total)

    def add(n: jax.Array, _: None) -> None:
        operand = x[:, pl.ds(pl.multiple_of(source[n] * b, b), b)]
        block = w[slot[n], :, pl.ds(pl.multiple_of(column[n] * b, b), b)]
        total[...] += _dot(operand, block, 1, int(transposed))

    jax.lax.fori_loop(start[result], start[result + 1], add, None)
    y[...] = (total[...] + shift[...]).astype(y.dtype)


def _outer(b: int, tile: int, x: jax.Array, g: jax.Array, index: jax.Array) -> Any:
    """The gradient of the kernel, float32 ``[per, b, out]``."""
    columns, per = index.shape
    shape = (per, b, g.shape[1])
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(pl.cdiv(x.shape[0], tile), columns),
        in_specs=[
            pl.BlockSpec((tile, x.shape[1]), lambda r, j, _: (r, 0)),
            pl.BlockSpec((tile, b), lambda r, j, _: (r, j)),
        ],
        out_specs=pl.BlockSpec(shape, lambda r, j, _: (0, 0, 0)),
    )
    total = pl.pallas_call(
        functools.partial(_outer_kernel, per, x.shape[0]),
        name="block_sparse_kernel_gradient",
        grid_spec=spec,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=vmem.budget() * 3 // 2
        ),
    )(jnp.reshape(index, -1), x, g)
    return (), total


def _outer_kernel(per: int, rows: int, source: Any, x: Any, g: Any, d: Any) -> None:
    r, j = pl.program_id(0), pl.program_id(1)
    b = g.shape[1]
    columns = pl.ds(pl.multiple_of(j * b, b), b)

    @pl.when(r == 0)
    def _() -> None:
        d[:, :, columns] = jnp.zeros((per, b, b), jnp.float32)

    right = vmem.inside(g[...], r, rows)

    def add(t: jax.Array, _: None) -> None:
        left = vmem.inside(x[:, pl.ds(pl.multiple_of(source[j * per + t] * b, b), b)], r, rows)
        d[t, :, columns] += _dot(left, right, 0, 0)

    jax.lax.fori_loop(0, per, add, None)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return products.dot(a, b, axis_a, axis_b, jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
