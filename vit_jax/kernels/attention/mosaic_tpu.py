"""A Pallas kernel for TPUs that has all tokens of an image in vector memory.

One program reads all tokens of some heads as the product left them and writes them as the next product takes them. The
gradient computes the probabilities once more, so that nothing but ``qkv`` is kept for it; keys are its rows, which
makes all but one of its products and the sums of the softmax run the way that registers lie.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax import sharding
from vit_jax.kernels import sharded, tiles, vmem
from vit_jax.kernels.attention.lanes import group, only, pieces, read, rolled, spread, turned, write
from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.products import differentiable, dot
from vit_jax.kernels.windows import LANES, up
from vit_jax.types import UserError

LOGITS = 16 * 200 * 256
"""Logits that a program is unrolled for, those of ViT-L/16: half take 5 % more cycles, more only lengthen the code."""
MOST = 2**20
"""Logits above which the heads that fill whole registers are too many to unroll."""


def run(
    qkv: jax.Array,
    heads: int,
    causal: bool,
    blocks: int = 1,
    key_bias: jax.Array | None = None,
    rotation: Rotation | None = None,
) -> jax.Array:
    """``[B, N, heads * 3 * E] -> [B, N, heads * E]``, see :mod:`vit_jax.kernels.attention`.

    ``key_bias`` float32 ``[B, N]`` is added to the logits of each key; neither it nor the rotation has a gradient.
    """
    mesh = sharded.mesh()
    rotation = jax.tree.map(spread, rotation)
    if mesh is None:
        return _attention(heads, causal, blocks, qkv, key_bias, rotation)
    tensor, batch = _tensor(mesh, heads, blocks), qkv.shape[0]
    layout = jax.P(sharding.BATCH, None, "tensor" if tensor > 1 else None)
    one = functools.partial(_attention, heads // tensor, causal, blocks)
    more = -batch % math.prod(mesh.shape[axis] for axis in sharding.BATCH)  # images that devices have besides
    qkv = jnp.pad(qkv, ((0, more), (0, 0), (0, 0))) if more else qkv
    key_bias = jnp.pad(key_bias, ((0, more), (0, 0))) if more and key_bias is not None else key_bias
    specs = (layout, None if key_bias is None else jax.P(sharding.BATCH, None), None if rotation is None else jax.P())
    call = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=layout, check_vma=False)
    return call(qkv, key_bias, rotation)[:batch]


def unsupported_reason(
    qkv: jax.Array, heads: int, causal: bool, blocks: int = 1, key_bias: Any = None, rotation: Any = None
) -> str | None:
    """Why the kernel cannot run this, as the end of a sentence, or None. Array or shape."""
    if reason := vmem.unsupported_rows(qkv):
        return reason
    (_, tokens, width), mesh = qkv.shape, sharded.mesh()
    size, here = width // heads // 3, heads // (1 if mesh is None else _tensor(mesh, heads, blocks))
    if size > LANES:
        return f"heads have {size} channels, more than {LANES}"
    if size % 8:
        return f"heads have {size} channels, not a multiple of 8"
    count = _heads(here, size, tokens, blocks)
    if (logits := count * _logits(tokens)) > MOST:
        return f"{count} heads of {tokens} tokens have {logits:,} logits, more than the {MOST:,} it is unrolled for"
    columns = up(3 * count * size, LANES)
    need = 2 * 8 * up(tokens, 16) * columns * qkv.dtype.itemsize // 3 + 40 * _logits(tokens)
    need += 0 if rotation is None else 4 * 4 * up(tokens, 8) * LANES
    return vmem.excess("it", need)


def _tensor(mesh: Any, heads: int, blocks: int) -> int:
    """Among how many devices the heads are divided; those in blocks are not contiguous."""
    return mesh.shape["tensor"] if heads % mesh.shape["tensor"] == 0 and blocks == 1 else 1


def _logits(tokens: int) -> int:
    """Of a head, with what fills registers up."""
    return up(tokens, 8) * up(tokens, LANES)


def _heads(heads: int, size: int, tokens: int, blocks: int = 1) -> int:
    """Heads of a program: whole registers, as many as it is unrolled for; or all, as of those in blocks."""
    if blocks > 1:
        return heads
    least = group(size)
    fits = [n for n in range(least, heads + 1, least) if heads % n == 0]
    if pinned := tiles.of("attention"):
        if pinned not in (known := sorted({*fits, heads})):
            raise UserError(f"{pinned} of {heads} heads are no piece of whole registers; pin one of {known}.")
        return pinned
    return max((n for n in fits if n * _logits(tokens) <= LOGITS), default=min(fits, default=heads))


def _backward(
    heads: int, causal: bool, blocks: int, qkv: jax.Array, key_bias: Any, rotation: Any, g: jax.Array
) -> tuple[jax.Array, Any, Any]:
    kernel = functools.partial(_backward_kernel, blocks, causal)
    column = None if key_bias is None else key_bias[:, :, None]
    dqkv = _call(kernel, "attention_backward", heads, blocks, 3, column, rotation, qkv, g.astype(qkv.dtype))
    return dqkv, *jax.tree.map(jnp.zeros_like, (key_bias, rotation))


@differentiable(_backward, static=3)
def _attention(
    heads: int,
    causal: bool,
    blocks: int,
    qkv: jax.Array,
    key_bias: jax.Array | None,
    rotation: Rotation | None,
) -> jax.Array:
    kernel = functools.partial(_forward_kernel, blocks, causal)
    row = None if key_bias is None else key_bias[:, None, :]
    return _call(kernel, "attention_forward", heads, blocks, 1, row, rotation, qkv)


def _call(
    kernel: Any,
    name: str,
    heads: int,
    blocks: int,
    parts: int,
    key_bias: jax.Array | None,
    rotation: Rotation | None,
    *arrays: jax.Array,
) -> jax.Array:
    """Runs a kernel that has ``parts * E`` columns of output for each head; ``arrays``: qkv, others of heads."""
    qkv, *more = arrays
    batch, tokens, width = qkv.shape
    size = width // heads // 3
    count = _heads(heads, size, tokens, blocks)

    def block(parts: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, tokens, up(parts * count * size, LANES)), lambda image, part: (image, 0, part))

    specs = [block(3), *(block(1) for _ in more)]
    if rotation is not None:
        specs += [pl.BlockSpec((tokens, LANES), lambda image, part: (0, 0))] * 2
        arrays = (*arrays, rotation.cos, rotation.sin)
    if key_bias is not None:
        specs.append(pl.BlockSpec((1, *key_bias.shape[1:]), lambda image, part: (image, 0, 0)))
        arrays = (*arrays, key_bias * math.log2(math.e))
    y: jax.Array = pl.pallas_call(
        functools.partial(kernel, 0 if rotation is None else rotation.pair, count, size),
        name=name,
        grid=(batch, heads // count),
        in_specs=specs,
        out_specs=block(parts),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, parts * heads * size), qkv.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem.budget()
        ),
    )(*arrays)
    return y


def _forward_kernel(blocks: int, causal: bool, pair: int, heads: int, size: int, qkv: Any, *rest: Any) -> None:
    *options, y = rest
    rotation, more = _options(options, pair)
    width, out = 3 * heads * size, []
    for two in _in_turn(pieces(heads, size, blocks)):
        read_all = [_read(qkv, width, rotation, *one) for one in two]
        logits = [_masked(dot(q, k, 1, 1), causal, 0) for q, k, _ in read_all]
        weights = [_exponentials(x, size, 1, more) for x in logits]
        for (_, _, v), (p, total), (*_, head) in zip(read_all, weights, two, strict=True):
            out.append((head, dot(p.astype(v.dtype), v, 1, 0) * _reciprocal(total)))
    write(y, out)


def _backward_kernel(blocks: int, causal: bool, pair: int, heads: int, size: int, qkv: Any, g: Any, *rest: Any) -> None:
    *options, dqkv = rest
    rotation, more = _options(options, pair)
    width, scale, out = 3 * heads * size, size**-0.5, []
    for two in _in_turn(pieces(heads, size, blocks)):
        read_all = [_read(qkv, width, rotation, *one) for one in two]
        gs = [only(read(g, head, heads * size, head.lane), head) for *_, head in two]
        logits = [_masked(dot(k, q, 1, 1), causal, 1) for q, k, _ in read_all]  # keys before queries
        dweights = [dot(v, h, 1, 1) for (_, _, v), h in zip(read_all, gs, strict=True)]
        exponentials = [_exponentials(x, size, 0, more) for x in logits]
        weights = [p * _reciprocal(total) for p, total in exponentials]
        for (q, k, _), (qs, ks, vs, head), p, dp, h in zip(read_all, two, weights, dweights, gs, strict=True):
            dlogits = (p * (dp - jnp.sum(p * dp, axis=0, keepdims=True)) * scale).astype(q.dtype)
            dq, dk = jnp.transpose(dot(k, dlogits, 0, 0)), dot(dlogits, q, 1, 0)
            if rotation is not None:
                dq, dk = (turned(x, rotation, qs, back=True) for x in (dq, dk))
            out.append((qs, dq))
            out.append((ks, rolled(dk, ks.lane - qs.lane)))
            out.append((vs, rolled(dot(p.astype(h.dtype), h, 1, 0), vs.lane - head.lane)))
    write(dqkv, out)


def _in_turn(heads: list[Any]) -> list[list[Any]]:
    """Two heads at a time: while one is in the matrix units, the other is in the vector units."""
    return [heads[i : i + 2] for i in range(0, len(heads), 2)]


def _options(refs: list[Any], pair: int) -> tuple[Rotation | None, jax.Array | None]:
    """The rotation, if channels are in pairs, and the bias of the keys, if there is one."""
    rotation = Rotation(refs[0][...], refs[1][...], pair) if pair else None
    bias = refs[2 if pair else 0 :]
    return rotation, bias[0][0] if bias else None


def _read(
    qkv: Any, width: int, rotation: Rotation | None, q: Any, k: Any, v: Any, head: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query and key at the lanes of the query, zeros beside the query; value at the lanes of the output."""
    here, there = read(qkv, q, width, q.lane), read(qkv, k, width, q.lane)
    if rotation is not None:
        here, there = turned(here, rotation, q), turned(there, rotation, q)
    return only(here, q), there, read(qkv, v, width, head.lane)


def _masked(logits: jax.Array, causal: bool, queries: int) -> jax.Array:
    """``logits``, with queries along an axis, of the keys that a query may see."""
    if not causal:
        return logits
    query, key = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (queries, 1 - queries))
    return jnp.where(key <= query, logits, jnp.finfo(jnp.float32).min)


def _exponentials(logits: jax.Array, size: int, keys: int, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Numerators of a softmax over the axis ``keys`` of ``logits / sqrt(size)``, and their sums.

    ``bias`` of the keys, times log2(e), is added to the former.
    """
    scale = math.log2(math.e) * size**-0.5  # which is a part of 2^x, not a pass of its own
    if bias is None:
        most = jnp.max(logits, axis=keys, keepdims=True)
        p = jnp.exp2(logits * scale - most * scale)
    else:
        logits = logits * scale + bias
        p = jnp.exp2(logits - jnp.max(logits, axis=keys, keepdims=True))
    return p, jnp.sum(p, axis=keys, keepdims=True)


def _reciprocal(x: jax.Array) -> jax.Array:
    """``1 / x`` to rounding: Newton's steps each double the bits, of which the hardware has seven or more."""
    y = pl.reciprocal(x, approx=True)
    y = y * (2.0 - x * y)
    return y * (2.0 - x * y)


IMPLEMENTATION = Implementation(run, unsupported_reason, platform="tpu")
