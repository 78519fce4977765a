"""A Pallas kernel for TPUs: channels on the lanes, the state's numbers on the sublanes, one pass over the tokens.

The state stays in VMEM from chunk to chunk. What enters it and reads it is the same for all channels: columns of ``b``
and ``c``, which are turned so that tokens lie on the lanes. The backward has the states before every chunk, computes
those inside of it anew, and goes through the chunks from the last to the first.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.windows import LANES, up

CHUNK = 256
"""Most tokens of a chunk, a multiple of 128."""
CHANNELS = 512
"""Most channels of a tile, a multiple of 128."""


class Tiles(NamedTuple):
    """How ``[B, N, E]`` is divided.

    Attributes:
      tokens: N.
      channels: E.
      size: n.
      chunk: tokens of a chunk.
      chunks: of N tokens.
      width: channels of a tile.
      across: tiles of E channels.
      group: tokens that are read at once, a register of the narrowest type.
    """

    tokens: int
    channels: int
    size: int
    chunk: int
    chunks: int
    width: int
    across: int
    group: int

    @classmethod
    def of(cls, x: Any, delta: Any, a: Any) -> Tiles:
        """Arrays or shapes."""
        _, tokens, channels = x.shape
        group = 32 // min(x.dtype.itemsize, delta.dtype.itemsize)
        chunk = CHUNK if tokens > CHUNK else up(tokens, group)
        across = -(-channels // CHANNELS)
        width = channels if across == 1 else up(-(-channels // across))
        return cls(tokens, channels, a.shape[1], chunk, -(-tokens // chunk), width, -(-channels // width), group)

    @property
    def blocks(self) -> int:
        """Blocks of 128 columns that a chunk has."""
        return -(-self.chunk // LANES)

    def vmem(self) -> int:
        """Bytes that the backward needs: what moves twice, the states of a chunk, and some of one token."""
        size, width = up(self.size, 8), up(self.width)
        moving = 5 * self.chunk * width + 4 * self.blocks * size * LANES
        return 4 * (2 * moving + (self.chunk + 16) * size * width)


def unsupported_reason(x: jax.Array, delta: jax.Array, a: jax.Array, b: Any, c: Any, d: Any) -> str | None:
    """Why the kernel cannot run this, as the end of a sentence, or None. Arrays or shapes."""
    if reason := vmem.unsupported_rows(x):
        return reason
    if delta.dtype not in (jnp.float32, jnp.bfloat16):
        return f"delta is {delta.dtype}, neither float32 nor bfloat16"
    if math.prod(a.shape) == 0:
        return "there is no state"
    return vmem.excess("its backward", Tiles.of(x, delta, a).vmem())


def run(x: jax.Array, delta: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """See ``vit_jax.kernels.selective_scan``."""
    return _scan(x, delta, a, b, c, d)


def _gradients(saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    (x, delta, a, b, c, d), starts = saved
    tiles = Tiles.of(x, delta, a)
    split = x, delta, g.astype(x.dtype), starts, _columns(tiles, b), _columns(tiles, c)
    (dx, ddelta, db, dc), (da, dd) = shard_rows(functools.partial(_backward, tiles), split, _whole(tiles, a, d))
    da, dd = da[:, : tiles.channels].T.astype(a.dtype), dd[0, : tiles.channels].astype(d.dtype)
    return dx, ddelta, da, _rows(tiles, db, b), _rows(tiles, dc, c), dd


def _run(save: bool, x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[jax.Array, ...]:
    tiles = Tiles.of(x, delta, a)
    split = x, delta, _columns(tiles, b), _columns(tiles, c)
    found: tuple[jax.Array, ...] = shard_rows(functools.partial(_forward, tiles, save), split, _whole(tiles, a, d))[0]
    return found


@jax.custom_vjp
def _scan(*args: jax.Array) -> jax.Array:
    return _run(False, *args)[0]


def _scan_fwd(*args: jax.Array) -> Any:
    y, starts = _run(True, *args)
    return y, (args, starts)


_scan.defvjp(_scan_fwd, _gradients)


def _columns(tiles: Tiles, b: jax.Array) -> jax.Array:
    """``[B, N, n]`` -> float32 ``[B, blocks, n, 128]``, zeros behind the last token."""
    b = jnp.pad(b.astype(jnp.float32), ((0, 0), (0, tiles.chunks * tiles.blocks * LANES - tiles.tokens), (0, 0)))
    return jnp.swapaxes(jnp.reshape(b, (b.shape[0], -1, LANES, tiles.size)), 2, 3)


def _rows(tiles: Tiles, db: jax.Array, like: jax.Array) -> jax.Array:
    """The opposite of :func:`_columns` for what every tile of channels gives, ``[B, tiles, blocks, n, 128]``."""
    rows = jnp.reshape(jnp.swapaxes(jnp.sum(db, axis=1), 2, 3), (like.shape[0], -1, tiles.size))
    return rows[:, : tiles.tokens].astype(like.dtype)


def _whole(tiles: Tiles, a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``[n, E]`` and ``[1, E]`` float32, zeros for the channels behind the last."""
    more = ((0, 0), (0, tiles.across * tiles.width - tiles.channels))
    return jnp.pad(a.astype(jnp.float32).T, more), jnp.pad(d.astype(jnp.float32)[None], more)


def _specs(tiles: Tiles, back: bool) -> dict[str, pl.BlockSpec]:
    """Of a grid (tiles of channels, images, chunks), the last from the end to the beginning where ``back``."""
    at = (lambda i: tiles.chunks - 1 - i) if back else (lambda i: i)
    n, width = tiles.size, tiles.width
    return {
        "tokens": pl.BlockSpec((None, tiles.chunk, width), lambda e, image, i: (image, at(i), e)),
        "columns": pl.BlockSpec((None, tiles.blocks, n, LANES), lambda e, image, i: (image, at(i), 0, 0)),
        "apart": pl.BlockSpec((None, None, tiles.blocks, n, LANES), lambda e, image, i: (image, e, at(i), 0, 0)),
        "start": pl.BlockSpec((None, None, n, width), lambda e, image, i: (image, at(i), 0, e)),
        "rates": pl.BlockSpec((n, width), lambda e, image, i: (0, e)),
        "skip": pl.BlockSpec((1, width), lambda e, image, i: (0, e)),
    }


def _call(tiles: Tiles, name: str, kernel: Any, ins: Any, outs: Any, scratch: Any, back: bool = False) -> Any:
    """The kernel over all tiles; ``ins`` are arrays, ``outs`` shapes, each behind its name in :func:`_specs`."""
    specs = _specs(tiles, back)
    images = ins[0][1].shape[0]
    return pl.pallas_call(
        functools.partial(kernel, tiles),
        name=name,
        grid=(tiles.across, images, tiles.chunks),
        in_specs=[specs[key] for key, _ in ins],
        out_specs=[specs[key] for key, _ in outs],
        out_shape=[jax.ShapeDtypeStruct(shape.shape, shape.dtype) for _, shape in outs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if back else "parallel", "arbitrary"),
            vmem_limit_bytes=vmem.budget(),
        ),
    )(*(array for _, array in ins))


def _forward(tiles: Tiles, save: bool, x: Any, delta: Any, b: Any, c: Any, a: Any, d: Any) -> Any:
    starts = (x.shape[0], tiles.chunks, tiles.size, tiles.across * tiles.width)
    ins = [("tokens", x), ("tokens", delta), ("columns", b), ("columns", c), ("rates", a), ("skip", d)]
    outs = [("tokens", x), ("start", jax.ShapeDtypeStruct(starts, jnp.float32))][: 1 + save]
    scratch = [(tiles.size, tiles.width)]
    return tuple(_call(tiles, "selective_scan_forward", _forward_kernel, ins, outs, scratch)), ()


def _backward(tiles: Tiles, x: Any, delta: Any, g: Any, starts: Any, b: Any, c: Any, a: Any, d: Any) -> Any:
    apart = jax.ShapeDtypeStruct((x.shape[0], tiles.across, *b.shape[1:]), jnp.float32)
    tokens = [("tokens", v) for v in (x, delta)]
    ins = [*tokens, ("tokens", g), ("start", starts), ("columns", b), ("columns", c), ("rates", a), ("skip", d)]
    outs = [*tokens, ("apart", apart), ("apart", apart), ("rates", a), ("skip", d)]
    scratch = [(tiles.chunk, tiles.size, tiles.width), (tiles.size, tiles.width)]
    *rows, da, dd = _call(tiles, "selective_scan_backward", _backward_kernel, ins, outs, scratch, back=True)
    return tuple(rows), (da, dd)


def _groups(tiles: Tiles, chunk: Any) -> Any:
    """How many groups of tokens the chunk has: the last one of an image may have fewer."""
    most = tiles.chunk // tiles.group
    return most if tiles.chunks == 1 else jnp.minimum(most, pl.cdiv(tiles.tokens - chunk * tiles.chunk, tiles.group))


def _read(tiles: Tiles, ref: Any, chunk: Any, i: Any) -> jax.Array:
    """Group ``i`` of the chunk in float32, zeros behind the last token and the last channel."""
    value = ref[pl.ds(pl.multiple_of(i * tiles.group, tiles.group), tiles.group), :]
    value = vmem.inside(value, chunk * (tiles.chunk // tiles.group) + i, tiles.tokens)
    if tiles.channels % tiles.width:
        at = pl.program_id(0) * tiles.width + jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
        value = jnp.where(at < tiles.channels, value, jnp.zeros_like(value))
    return value.astype(jnp.float32)


def _turned(tiles: Tiles, i: Any, back: bool = False) -> tuple[Any, Any]:
    """The block of columns that group ``i`` is in, and by how much to roll it so that the group comes first."""
    per = LANES // tiles.group
    first = (i % per) * tiles.group
    return i // per, first if back else (LANES - first) % LANES


def _column(tiles: Tiles, ref: Any, i: Any) -> jax.Array:
    """``[n, 128]`` with those of group ``i`` first."""
    block, shift = _turned(tiles, i)
    return pltpu.roll(ref[block], shift, 1)


def _forward_kernel(tiles: Tiles, x: Any, delta: Any, b: Any, c: Any, a: Any, d: Any, y: Any, *refs: Any) -> None:
    *start, state = refs
    chunk = pl.program_id(2)

    @pl.when(chunk == 0)
    def _() -> None:
        state[...] = jnp.zeros_like(state)

    for ref in start:
        ref[...] = state[...]

    def group(i: Any, h: jax.Array) -> jax.Array:
        tokens, steps = _read(tiles, x, chunk, i), _read(tiles, delta, chunk, i)
        enter, leave, inputs, out = _column(tiles, b, i), _column(tiles, c, i), tokens * steps, []
        for j in range(tiles.group):
            h = jnp.exp(steps[j : j + 1] * a[...]) * h + enter[:, j : j + 1] * inputs[j : j + 1]
            out.append(jnp.sum(h * leave[:, j : j + 1], axis=0, keepdims=True))
        rows = pl.ds(pl.multiple_of(i * tiles.group, tiles.group), tiles.group)
        y[rows, :] = (jnp.concatenate(out) + d[...] * tokens).astype(y.dtype)
        return h

    state[...] = jax.lax.fori_loop(0, _groups(tiles, chunk), group, state[...])


def _backward_kernel(tiles: Tiles, *refs: Any) -> None:
    x, delta, g, start, b, c, a, d, dx, ddelta, db, dc, da, dd, states, behind = refs
    chunk = tiles.chunks - 1 - pl.program_id(2)
    groups = _groups(tiles, chunk)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        behind[...] = jnp.zeros_like(behind)

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        da[...], dd[...] = jnp.zeros_like(da), jnp.zeros_like(dd)

    db[...], dc[...] = jnp.zeros_like(db), jnp.zeros_like(dc)

    def again(i: Any, h: jax.Array) -> jax.Array:
        steps = _read(tiles, delta, chunk, i)
        enter, inputs = _column(tiles, b, i), _read(tiles, x, chunk, i) * steps
        for j in range(tiles.group):
            states[i * tiles.group + j] = h
            h = jnp.exp(steps[j : j + 1] * a[...]) * h + enter[:, j : j + 1] * inputs[j : j + 1]
        return h

    def group(back: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        after, dh, rates = carry
        i = groups - 1 - back
        tokens, steps, outer = (_read(tiles, ref, chunk, i) for ref in (x, delta, g))
        enter, leave, inputs = _column(tiles, b, i), _column(tiles, c, i), tokens * steps
        place = jax.lax.broadcasted_iota(jnp.int32, enter.shape, 1)
        entered, left = jnp.zeros_like(enter), jnp.zeros_like(enter)
        inner, exponents = [], []
        for j in reversed(range(tiles.group)):
            row = slice(j, j + 1)
            before = states[i * tiles.group + j]
            dh += leave[:, row] * outer[row]
            left = jnp.where(place == j, jnp.sum(after * outer[row], axis=1, keepdims=True), left)
            entered = jnp.where(place == j, jnp.sum(dh * inputs[row], axis=1, keepdims=True), entered)
            inner.append(jnp.sum(dh * enter[:, row], axis=0, keepdims=True))
            dh *= jnp.exp(steps[row] * a[...])
            exponent = dh * before
            exponents.append(jnp.sum(exponent * a[...], axis=0, keepdims=True))
            rates += exponent * steps[row]
            after = before
        step = jnp.concatenate(inner[::-1])
        rows = pl.ds(pl.multiple_of(i * tiles.group, tiles.group), tiles.group)
        dx[rows, :] = (steps * step + d[...] * outer).astype(dx.dtype)
        ddelta[rows, :] = (tokens * step + jnp.concatenate(exponents[::-1])).astype(ddelta.dtype)
        dd[...] += jnp.sum(outer * tokens, axis=0, keepdims=True)
        block, shift = _turned(tiles, i, back=True)
        db[block] += pltpu.roll(entered, shift, 1)
        dc[block] += pltpu.roll(left, shift, 1)
        return after, dh, rates

    after = jax.lax.fori_loop(0, groups, again, start[...])
    _, behind[...], rates = jax.lax.fori_loop(0, groups, group, (after, behind[...], jnp.zeros_like(da)))
    da[...] += rates


IMPLEMENTATION = Implementation(run, unsupported_reason, platform="tpu")
