"""The rows of the kernel that a tile of tokens needs, brought from HBM one by one by a Pallas kernel for TPUs.

XLA finds outside which units any token of a tile uses, and takes their values together; the kernel gets the list ahead
of its data, copies the listed rows in chunks, the next while it multiplies one, and stops where the list ends. A
float32 row can be copied alone; of bfloat16 the smallest piece that can is :data:`PIECE` rows, all of them read where
one is used. On a mesh every device runs the kernel on its tokens.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import products, sharded, vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.topk_mlp.dense import with_its_gradients
from vit_jax.kernels.topk_mlp.gather import split_units

PIECE = {"float32": 1, "bfloat16": 8}
"""Rows of one copy, by the kernel's type: the tiles of HBM are 8 rows high and divide only between 32-bit words."""
CHUNK = 128
"""Rows that are multiplied at once, the depth of a matrix unit."""
ROWS = 32
"""Most tokens of a tile: the more, the more units are used by one or another."""
LISTS = 2**18
"""Bytes of scalar memory that the lists of all tiles may take."""


def run(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> jax.Array:
    """``h [..., F] @ kernel + bias``; see ``vit_jax.kernels.topk_mlp``."""
    return _product_of(k, h, kernel, bias)


def unsupported_reason(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> str | None:
    """Why the kernel cannot run this product, as the end of a sentence, or None. Arrays or shapes."""
    if not isinstance(math.prod(h.shape), int):  # exported for any batch
        return "the number of tokens is not known"
    if math.prod(h.shape) == 0:
        return "there are no tokens"
    for what, dtype in (("h", h.dtype), ("its kernel", kernel.dtype)):
        if str(dtype) not in PIECE:
            return f"{what} is {dtype}, neither float32 nor bfloat16"
    piece = PIECE[str(kernel.dtype)]
    if kernel.shape[0] % piece:
        return f"{kernel.shape[0]} {kernel.dtype} rows of the kernel are no multiple of {piece}"
    tiles, tile, listed = _sizes(sharded.rows(h), kernel, k)
    if 4 * tiles * listed > LISTS:
        return f"lists of units for {tiles} tiles of tokens take more than {LISTS >> 10} KiB of scalar memory"
    width, size = kernel.shape[1], kernel.dtype.itemsize
    return vmem.excess("it", 2 * CHUNK * width * size + 12 * tile * width + 8 * tile * listed * piece)


def slower_reason(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> str | None:
    """Why reading all rows would be faster, as the end of a sentence, or None. Arrays or shapes.

    Counted, not measured: single rows arrive at half the pace of the whole, if no two tokens share a unit.
    """
    rows, units, piece = sharded.rows(h), kernel.shape[0], PIECE[str(kernel.dtype)]
    if parted := split_units():
        return parted
    if 2 * rows * k * piece > units:
        return f"{k} units of {rows} tokens may need {min(rows * k * piece, units)} of {units} rows, above half"
    return None


def _sizes(rows: int, kernel: Any, k: int) -> tuple[int, int, int]:
    """Tiles of tokens, tokens of a tile, and how many pieces of the kernel are listed for each, whole chunks."""
    piece = PIECE[str(kernel.dtype)]
    tile = min(ROWS, pl.cdiv(rows, 16) * 16)
    most, chunk = min(kernel.shape[0] // piece, min(rows, tile) * k), CHUNK // piece
    return pl.cdiv(rows, tile), tile, pl.cdiv(most, chunk) * chunk


@with_its_gradients
def _product_of(k: int, h: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    rows = jnp.reshape(h, (-1, h.shape[-1]))
    f = functools.partial(_product, k)
    (y,), _ = sharded.shard_rows(f, (rows,), (kernel, products.shift(bias, kernel.shape[1])))
    return jnp.reshape(y, (*h.shape[:-1], kernel.shape[1]))


def used(h: jax.Array, piece: int, listed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pieces of the kernel that each tile of tokens needs.

    Args:
      h: ``[tiles, tile, F]``.
      piece: rows of a piece.
      listed: length of the lists.

    Returns:
      int32 ``[tiles, listed]`` the pieces in order, F / piece behind the last; int32 ``[tiles]`` how many;
      ``[tiles, tile, listed * piece]`` what of ``h`` belongs to their rows, 0 behind the last.
    """
    active = jnp.any(jnp.reshape(h, (*h.shape[:2], -1, piece)) != 0, axis=(1, 3))
    before = jnp.cumsum(active, axis=1, dtype=jnp.int32)
    # Number j of the list comes behind all pieces up to which j or fewer were used: no sort and no scatter.
    place = jnp.arange(listed, dtype=jnp.int32)[None, :, None]
    pieces = jnp.sum(before[:, None] <= place, axis=2, dtype=jnp.int32)
    columns = pieces[:, :, None] * piece + jnp.arange(piece, dtype=jnp.int32)[None, None]
    columns = jnp.reshape(columns, (h.shape[0], 1, listed * piece))
    return (
        pieces,
        jnp.minimum(before[:, -1], listed),
        jnp.take_along_axis(h, columns, axis=2, mode="fill", fill_value=0),
    )


def _product(k: int, h: jax.Array, kernel: jax.Array, bias: jax.Array) -> Any:
    """``h [rows, F] -> ([rows, D],)`` on one device, and no sums."""
    (units, width), piece = kernel.shape, PIECE[str(kernel.dtype)]
    tiles, tile, listed = _sizes(h.shape[0], kernel, k)
    tokens = jnp.reshape(jnp.pad(h, ((0, tiles * tile - h.shape[0]), (0, 0))), (tiles, tile, units))
    pieces, count, values = used(tokens, piece, listed)
    steps = listed * piece // CHUNK
    values = jnp.transpose(jnp.reshape(values, (tiles, tile, steps, CHUNK)), (0, 2, 1, 3))
    y = pl.pallas_call(
        functools.partial(_kernel, piece, listed),
        name="topk_mlp",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(tiles,),
            in_specs=[
                pl.BlockSpec((None, steps, tile, CHUNK), lambda t, *lists: (t, 0, 0, 0)),
                pl.BlockSpec((1, width), lambda t, *lists: (0, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec((tile, width), lambda t, *lists: (t, 0)),
            scratch_shapes=[
                pltpu.VMEM((2, CHUNK, width), kernel.dtype),
                pltpu.VMEM((tile, width), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((tiles * tile, width), h.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem.budget()),
    )(jnp.reshape(pieces, (-1,)), count, values, bias, kernel)
    return (y[: h.shape[0]],), ()


def _kernel(
    piece: int, listed: int, pieces: Any, count: Any, values: Any, bias: Any, kernel: Any, y: Any, rows: Any,
    total: Any, arrived: Any,
) -> None:  # fmt: skip
    """One tile. values ``[steps, tile, CHUNK]``, kernel in HBM, ``rows [2, CHUNK, D]`` what arrives."""
    tile, chunk = pl.program_id(0), CHUNK // piece
    here = count[tile]

    def at(j: Any) -> Any:
        return pl.ds(j if piece == 1 else pl.multiple_of(j * piece, piece), piece)

    def copies(step: Any, act: Any) -> None:
        """Starts, or waits for, the copies of a chunk."""
        slot = jax.lax.rem(step, 2)

        def one(j: Any, _: None) -> None:
            source = kernel.at[at(pieces[tile * listed + step * chunk + j])]
            act(pltpu.make_async_copy(source, rows.at[slot, at(j)], arrived.at[slot]))

        jax.lax.fori_loop(0, jnp.minimum(here - step * chunk, chunk), one, None)

    def multiply(step: Any, _: None) -> None:
        @pl.when((step + 1) * chunk < here)
        def start_the_next() -> None:
            copies(step + 1, lambda copy: copy.start())

        copies(step, lambda copy: copy.wait())
        arrived_rows = rows[jax.lax.rem(step, 2)]
        place = step * CHUNK + jax.lax.broadcasted_iota(jnp.int32, arrived_rows.shape, 0)
        known = jnp.where(place < here * piece, arrived_rows, jnp.zeros_like(arrived_rows))
        total[...] += products.dot(values[step], known.astype(values.dtype), 1, 0)

    total[...] = jnp.zeros_like(total)
    copies(0, lambda copy: copy.start())
    jax.lax.fori_loop(0, pl.cdiv(here, chunk), multiply, None)
    y[...] = (total[...] + bias[...]).astype(y.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
