"""The block-sparse product as plain products: of the parts of a known pattern, or batched over gathered inputs.

On the CPU only plain two-dimensional products are fast in bfloat16, so a pattern known beforehand runs part by part
(:mod:`.plan`): the inputs of a part side by side, one product with all its outputs, and where several parts have the
same output their float32 results are added. The gradient of x goes the same way backwards, that of the kernel is one
product per part. A pattern that is data takes a copy of its inputs for every output block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.block_sparse.plan import Part, Pattern, as_pattern, parts, runs, sums
from vit_jax.kernels.products import bias_gradient, differentiable, dot, dots, outer
from vit_jax.types import Array

UNROLLED = 128
"""More parts than this run batched: the unrolled program grows with them."""


def run(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [rows, in]``; see ``vit_jax.kernels.block_sparse``."""
    if isinstance(index, np.ndarray):
        pattern = as_pattern(index)
        if len(parts(pattern)) <= UNROLLED:
            return _unrolled(pattern, x, kernel, bias)
    return _batched(x, kernel, jnp.asarray(index), bias)


def _unrolled_gradients(
    pattern: Pattern, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    found, (per, b, out), g = parts(pattern), kernel.shape, g.astype(x.dtype)
    weights = [_weight(kernel.astype(x.dtype), part) for part in found]
    cut = [_take(g, part.targets, b) for part in found]
    pieces = [dot(u, w, 1, 1) for u, w in zip(cut, weights, strict=True)]
    dx = _add_up(pieces, [part.sources for part in found], x.shape[1] // b, b, None, x.dtype)
    blocks = []
    for part, u in zip(found, cut, strict=True):
        d = outer(_take(x, part.sources, b), u).astype(kernel.dtype)
        d = jnp.transpose(jnp.reshape(d, (len(part.sources), b, len(part.targets), b)), (0, 2, 1, 3))
        blocks.append(jnp.reshape(d, (-1, b, b)))
    places = [(t, j) for part in found for row in part.slots for t, j in zip(row, part.targets, strict=True)]
    slot, column = np.asarray(places).T
    order = np.lexsort((column, slot))  # slot by slot, in each all columns
    dkernel = jnp.reshape(jnp.concatenate(blocks)[order], (per, out // b, b, b))
    return dx, jnp.reshape(jnp.transpose(dkernel, (0, 2, 1, 3)), kernel.shape), bias_gradient(g, bias)


@differentiable(_unrolled_gradients, static=1)
def _unrolled(pattern: Pattern, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    found, (_, b, out) = parts(pattern), kernel.shape
    weights = [_weight(kernel.astype(x.dtype), part) for part in found]
    pieces = [dot(_take(x, part.sources, b), w, 1, 0) for part, w in zip(found, weights, strict=True)]
    return _add_up(pieces, [part.targets for part in found], out // b, b, bias, x.dtype)


def _weight(kernel: jax.Array, part: Part) -> jax.Array:
    """The dense kernel of a part, ``[sources * b, targets * b]``."""
    per, b, out = kernel.shape
    slots = np.asarray(part.slots)
    bounds = list(runs(part.targets))
    if len(bounds) == 1 and len(slots) == per and (slots == np.arange(per)[:, None]).all():
        block = jax.lax.slice_in_dim(kernel, bounds[0][0] * b, bounds[0][1] * b, axis=2)
    else:
        block = jnp.reshape(kernel, (per, b, out // b, b))[slots, :, np.asarray(part.targets)]
        block = jnp.transpose(block, (0, 2, 1, 3))
    return jnp.reshape(block, (len(part.sources) * b, len(part.targets) * b))


def _take(x: jax.Array, blocks: Sequence[int], b: int) -> jax.Array:
    """These blocks of the columns of ``x``, side by side."""
    pieces = [jax.lax.slice_in_dim(x, low * b, high * b, axis=1) for low, high in runs(blocks)]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, 1)


def _add_up(
    pieces: Sequence[jax.Array], groups: Sequence[Sequence[int]], blocks: int, b: int, bias: Any, dtype: Any
) -> jax.Array:
    """``[rows, blocks * b]`` from what the parts have of it, zeros where none has."""
    columns, done = [], 0
    for length, terms in sums(groups, blocks):
        cut = [jax.lax.slice_in_dim(pieces[p], at * b, (at + length) * b, axis=1) for p, at in terms]
        total = functools.reduce(jnp.add, cut) if cut else jnp.zeros((pieces[0].shape[0], length * b), jnp.float32)
        if bias is not None:
            total += bias[done * b : (done + length) * b].astype(jnp.float32)[None]
        columns.append(total.astype(dtype))
        done += length
    return columns[0] if len(columns) == 1 else jnp.concatenate(columns, 1)


def _batched_gradients(x: jax.Array, kernel: jax.Array, index: jax.Array, bias: Any, g: jax.Array) -> tuple[Any, ...]:
    (per, b, out), rows, g = kernel.shape, x.shape[0], g.astype(x.dtype)
    cut = jnp.transpose(jnp.reshape(g, (rows, out // b, b)), (1, 0, 2))
    d = jnp.reshape(dots(cut, _columns(kernel.astype(x.dtype)), 2, 2), (out // b, rows, per, b))
    dx = jnp.zeros((x.shape[1] // b, rows, b), jnp.float32).at[index].add(jnp.transpose(d, (0, 2, 1, 3)))
    dx = jnp.reshape(jnp.transpose(dx, (1, 0, 2)), x.shape).astype(x.dtype)
    dkernel = jnp.reshape(dots(_gather(x, kernel, index), cut, 1, 1), (out // b, per, b, b))
    dkernel = jnp.reshape(jnp.transpose(dkernel, (1, 2, 0, 3)), kernel.shape).astype(kernel.dtype)
    return dx, dkernel, None, bias_gradient(g, bias)


@differentiable(_batched_gradients)
def _batched(x: jax.Array, kernel: jax.Array, index: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = dots(_gather(x, kernel, index), _columns(kernel.astype(x.dtype)), 2, 1)
    y = jnp.reshape(jnp.transpose(y, (1, 0, 2)), (x.shape[0], -1))
    return (y if bias is None else y + bias.astype(jnp.float32)[None]).astype(x.dtype)


def _gather(x: jax.Array, kernel: jax.Array, index: jax.Array) -> jax.Array:
    """The inputs of every output block, ``[out_blocks, rows, per * b]``."""
    per, b, out = kernel.shape
    blocks = jnp.transpose(jnp.reshape(x, (x.shape[0], -1, b)), (1, 0, 2))[index]
    return jnp.reshape(jnp.transpose(blocks, (0, 2, 1, 3)), (out // b, x.shape[0], per * b))


def _columns(kernel: jax.Array) -> jax.Array:
    """``[per, b, out] -> [out_blocks, per * b, b]``."""
    per, b, out = kernel.shape
    return jnp.transpose(jnp.reshape(kernel, (per * b, out // b, b)), (1, 0, 2))
