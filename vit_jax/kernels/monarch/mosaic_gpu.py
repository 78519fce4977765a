"""The Monarch product as one Pallas kernel for Hopper GPUs: both factors, with the intermediate in shared memory.

Block l of the second factor takes from every block of the first only its own T values, so a program is one tile of
rows and one l: the first factor's products for that l, summed in registers, rounded once into shared memory, and from
there the second product. Nothing is computed twice; x is read L times, mostly from the L2 cache. The gradient of x is
the same product with the factors exchanged, so it is the same kernel; the gradients of the parameters are plain
products, in which the rows are summed over and no intermediate is in the way.

Only bfloat16: on float32 operands the matrix unit would round to TF32.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from vit_jax.kernels.dispatch import Implementation, other_gpu
from vit_jax.kernels.monarch import xla
from vit_jax.kernels.monarch.hopper import Plan, plan
from vit_jax.kernels.monarch.layout import Sizes, first, in_natural_order
from vit_jax.kernels.products import bias_gradient, differentiable, shift
from vit_jax.kernels.sharded import shard_rows


def unsupported_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the kernel cannot run this product, as the end of a sentence, or None."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    if (rows := math.prod(x.shape[:-1])) == 0:
        return "there are no rows"
    if x.dtype != jnp.bfloat16:
        return f"x is {x.dtype}, not bfloat16, in which alone the matrix unit of a GPU is exact"
    found = plan(sizes, rows, False), plan(sizes, rows, True)
    return next((f for f in found if isinstance(f, str)), None)


def slower_reason(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why another implementation should run unless this one is named, as the end of a sentence.

    On an H200 it took 0.76 of the time of XLA's products, but with gradients 1.20 of it (12,608 rows, 768 to 3072 in
    four blocks: ``experiments/benchmarks/results/gpu_h200.json``).
    """
    if reason := other_gpu("9.0"):
        return reason
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    p, dense = plan(sizes, math.prod(x.shape[:-1]), False), sizes.inputs * sizes.outputs
    if isinstance(p, str):
        return p
    if p.area < dense:
        return "it is the faster one without gradients only, name it for those"
    return f"blocks filled up to what the matrix unit takes make {p.area / dense:.1f} times the work of a dense product"


def _gradients(
    sizes: Sizes, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, g: jax.Array
) -> tuple[Any, ...]:
    g = g.astype(x.dtype)
    whole = kernel_1.astype(x.dtype), kernel_2.astype(x.dtype)
    (dx,), _ = shard_rows(functools.partial(_backward, sizes), (g,), whole)
    plain = functools.partial(xla.run, bias=None, input_parts=sizes.parts, blocked=True)
    d1, d2 = jax.vjp(functools.partial(plain, x), kernel_1, kernel_2)[1](g)
    return dx, d1, d2, bias_gradient(g, bias)


@in_natural_order
@differentiable(_gradients, static=1)
def run(sizes: Sizes, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None) -> jax.Array:
    whole = kernel_1.astype(x.dtype), kernel_2.astype(x.dtype), shift(bias, sizes.outputs)
    (y,), _ = shard_rows(functools.partial(_forward, sizes), (x,), whole)
    return y


def _forward(sizes: Sizes, x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array) -> Any:
    K, P, T, L, S, _ = sizes
    w1 = jnp.transpose(first(sizes, kernel_1), (1, 0, 3, 4, 2))  # [L, K, parts, P/parts, T]
    w2 = jnp.transpose(jnp.reshape(kernel_2, (L, 1, S, K, T)), (0, 3, 4, 1, 2))  # [L, K, T, 1, S]
    y = _call(sizes, False, x, jnp.reshape(w1, (L, K, P, T)), w2, jnp.reshape(bias, (L, 1, S)))
    return (y,), ()


def _backward(sizes: Sizes, g: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array) -> Any:
    """The gradient of x: blocks of the second factor come first, each gives T values to each block of the other."""
    K, P, T, L, S, parts = sizes
    w1 = jnp.transpose(jnp.reshape(kernel_2, (L, S, K, T)), (2, 0, 1, 3))  # [K, L, S, T]
    w2 = first(sizes, kernel_1)  # [K, L, T, parts, P/parts]
    dx = _call(sizes, True, g, w1, w2, jnp.zeros((K, parts, P // parts)))
    return (dx,), ()


def _call(sizes: Sizes, swap: bool, x: jax.Array, w1: jax.Array, w2: jax.Array, bias: jax.Array) -> jax.Array:
    """Two factors in a row.

    Args:
      sizes: of the Monarch product.
      swap: whether its factors are exchanged.
      x: ``[rows, parts * K * piece]``.
      w1: ``[L, K, parts * piece, T]``.
      w2: ``[L, K, T, parts of the output, outputs]``.
      bias: float32 ``[L, parts of the output, outputs]``.

    Returns:
      ``[rows, parts of the output * L * outputs]``.
    """
    rows = x.shape[0]
    p = plan(sizes, rows, swap)
    assert isinstance(p, Plan)
    more, wide = p.rows - rows, p.piece - p.inputs
    x = jnp.pad(jnp.reshape(x, (rows, p.parts * p.K, p.inputs)), ((0, more), (0, 0), (0, wide)))
    w1 = jnp.reshape(w1, (p.L, p.K, p.parts, p.inputs, w1.shape[-1]))
    w1 = jnp.pad(w1, ((0, 0), (0, 0), (0, 0), (0, wide), (0, p.window - w1.shape[-1])))
    far = p.width - p.outputs
    w2 = jnp.pad(w2, ((0, 0), (0, 0), (0, p.slot - w2.shape[2]), (0, 0), (0, far)))
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, far)))
    kernel = plgpu.kernel(
        functools.partial(_kernel, p),
        out_type=jax.ShapeDtypeStruct((p.rows, p.out_parts * p.L, p.width), x.dtype),
        grid=(p.rows // p.tile + bool(p.rows % p.tile), p.L),
        grid_names=("rows", "l"),
        num_threads=p.groups + 1,
        thread_name="wg",
        kernel_name="monarch_dx" if swap else "monarch_forward",
        scratch_types=_scratch(p),
    )
    y = kernel(
        x,
        jnp.reshape(w1, (p.L, -1, p.window)),
        jnp.reshape(w2, (p.L, p.K * p.slot, p.out_parts * p.width)),
        jnp.reshape(bias, (-1,)),
    )
    return jnp.reshape(y[:rows, :, : p.outputs], (rows, -1))


def _scratch(p: Plan) -> dict[str, Any]:
    def tiled(shape: tuple[int, ...], wide: int) -> Any:
        transforms = (plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(2 * wide))
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    return {
        "xs": tiled((p.stages, p.tile, p.step1), p.swizzle1),
        "w1s": tiled((p.stages, p.step1, p.window), p.swizzle1),
        "middle": tiled((p.groups, p.K // p.together, 64, p.together * p.slot), p.swizzle2),
        "w2s": tiled((p.stages, p.step2, p.out_tile), p.swizzle2),
        "ys": tiled((p.groups, 64, p.out_tile), p.swizzle2),
        "shift": plgpu.SMEM((p.tiles, p.out_tile), jnp.float32),
        # A stage is full once its copies have arrived, and empty once every multiplying group has read it.
        "full1": plgpu.Barrier(num_arrivals=2, num_barriers=p.stages),
        "empty1": plgpu.Barrier(num_arrivals=p.groups, num_barriers=p.stages),
        "full2": plgpu.Barrier(num_arrivals=1, num_barriers=p.stages),
        "empty2": plgpu.Barrier(num_arrivals=p.groups, num_barriers=p.stages),
        "arrived": plgpu.Barrier(num_arrivals=p.tiles),
    }


def _kernel(p: Plan, x: Any, w1: Any, w2: Any, bias: Any, y: Any, **scratch: Any) -> None:
    """One tile of rows and one l: a group of warps loads, the others multiply 64 rows each.

    x ``[rows, parts * K, piece]``, w1 ``[L, K * parts * piece, window]``, w2 ``[L, K * slot, out parts * width]``, bias
    ``[L * out parts * width]``, y ``[rows, out parts * L, width]``.
    """
    group, l = jax.lax.axis_index("wg"), jax.lax.axis_index("l")  # noqa: E741
    # The last tile ends with the last row: rows it shares with the one before are computed twice, to the same bits.
    row = pl.multiple_of(jnp.minimum(jax.lax.axis_index("rows") * p.tile, p.rows - p.tile), 8)

    @pl.when(group == p.groups)
    def _() -> None:
        if p.groups == 2:  # of the 64 K registers three groups of warps get 168 each; loading takes few
            plgpu.set_max_registers(40, action="decrease")
        _load(p, x, w1, w2, bias, row, l, **scratch)

    @pl.when(group < p.groups)
    def _() -> None:
        if p.groups == 2:
            plgpu.set_max_registers(232, action="increase")
        _multiply(p, y, group, row, l, **scratch)


def _load(p: Plan, x: Any, w1: Any, w2: Any, bias: Any, row: Any, l: Any, **s: Any) -> None:  # noqa: E741
    """Copies every step's operands into its stage as soon as the multiplying groups have left it."""
    for tile in range(p.tiles):
        at = pl.ds((l * p.tiles + tile) * p.out_tile, p.out_tile)
        plgpu.copy_gmem_to_smem(bias.at[at], s["shift"].at[tile], s["arrived"])
    for step, (k, part, start) in enumerate(_first_steps(p)):
        stage = step % p.stages
        if step >= p.stages:  # wait until the step that last lay here has been multiplied
            plgpu.barrier_wait(s["empty1"].at[stage])
        at, depth = pl.ds(start, p.step1), (k * p.parts + part) * p.piece + start
        source = x.at[pl.ds(row, p.tile), part * p.K + k, at]
        plgpu.copy_gmem_to_smem(source, s["xs"].at[stage], s["full1"].at[stage])
        plgpu.copy_gmem_to_smem(w1.at[l, pl.ds(depth, p.step1)], s["w1s"].at[stage], s["full1"].at[stage])
    for step, (tile, depth) in enumerate(_second_steps(p)):
        stage = step % p.stages
        if step >= p.stages:
            plgpu.barrier_wait(s["empty2"].at[stage])
        source = w2.at[l, pl.ds(depth, p.step2), pl.ds(tile * p.out_tile, p.out_tile)]
        plgpu.copy_gmem_to_smem(source, s["w2s"].at[stage], s["full2"].at[stage])
    for steps, empty in zip(p.steps, (s["empty1"], s["empty2"]), strict=True):
        for step in range(max(0, steps - p.stages), steps):  # leave no arrival unseen behind
            plgpu.barrier_wait(empty.at[step % p.stages])


def _first_steps(p: Plan) -> list[tuple[int, int, int]]:
    """Block, part of its input, first of the summands."""
    return list(itertools.product(range(p.K), range(p.parts), range(0, p.piece, p.step1)))


def _second_steps(p: Plan) -> list[tuple[int, int]]:
    """Tile of the output, first of the summands."""
    return list(itertools.product(range(p.tiles), range(0, p.K * p.slot, p.step2)))


def _multiply(p: Plan, y: Any, group: Any, row: Any, l: Any, **s: Any) -> None:  # noqa: E741
    """Both products of one group's 64 rows. What it writes to shared memory, it alone reads."""
    width, steps = p.together * p.slot, list(enumerate(_first_steps(p)))
    mine = pl.ds(group * 64, 64)
    for side in range(p.K // p.together):

        def first_product(total: Any, side: int = side) -> jax.Array:
            for step, (k, _, _) in steps:
                if k // p.together != side:
                    continue
                stage, column = step % p.stages, k % p.together * p.slot
                plgpu.barrier_wait(s["full1"].at[stage])  # both copies have arrived
                # The window's zeros behind the slot leave the next block's columns as they are.
                plgpu.wgmma(total.at[:, column : column + p.window], s["xs"].at[stage, mine], s["w1s"].at[stage])
                # The matrix unit reads its operands until it is done: the stage may be given back only then. Windows
                # overlap, and a product in flight must not share registers with one of another shape: here neither.
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(s["empty1"].at[stage])
            return total[...]

        full = plgpu.ACC((64, width - p.slot + p.window), jnp.float32)
        s["middle"][group, side] = pl.run_scoped(first_product, full)[:, :width].astype(jnp.bfloat16)
    # The matrix unit reads shared memory by another path than threads write it: all 128 threads' values must be there.
    plgpu.commit_smem()
    plgpu.barrier_wait(s["arrived"])  # the bias, all of its copies
    for tile in range(p.tiles):

        def second_product(total: Any, tile: int = tile) -> jax.Array:
            for step, (other, depth) in enumerate(_second_steps(p)):
                if other != tile:
                    continue
                stage, at = step % p.stages, pl.ds(depth % width, p.step2)
                plgpu.barrier_wait(s["full2"].at[stage])
                plgpu.wgmma(total, s["middle"].at[group, depth // width, :, at], s["w2s"].at[stage])
                plgpu.wgmma_wait(0)  # as above, before the stage is given back
                plgpu.barrier_arrive(s["empty2"].at[stage])
            return total[...]

        value = pl.run_scoped(second_product, plgpu.ACC((64, p.out_tile), jnp.float32))
        shift = plgpu.layout_cast(s["shift"][tile], plgpu.Layout.WGMMA.reduce(0))
        value = value + jax.lax.broadcast_in_dim(shift, value.shape, (1,))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the copy of the tile before has left ``ys``
        s["ys"][group] = value.astype(jnp.bfloat16)
        plgpu.commit_smem()  # the copy engine, too, reads by another path
        part, column = divmod(tile * p.out_tile, p.width)
        target = y.at[pl.ds(row + group * 64, 64), part * p.L + l, pl.ds(column, p.out_tile)]
        plgpu.copy_smem_to_gmem(s["ys"].at[group], target)
    plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the copies out of it


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="gpu")
