"""The perceptron as one Pallas kernel for TPUs: all four factors, with the hidden layer in VMEM.

Its values lie in slots between the second factor and the third as they do between the factors of one map
(:mod:`vit_jax.kernels.monarch.tiling`). The backward keeps nothing but the input: it computes the hidden layer anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_jax.kernels import vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.monarch import mosaic_tpu as single
from vit_jax.kernels.monarch.layout import Sizes
from vit_jax.kernels.monarch.tiling import Slots, Tiling, exchange, lay_out, lay_out_bias, slots, take_back, tiling
from vit_jax.kernels.monarch_mlp.factors import Factors
from vit_jax.kernels.products import differentiable, dot, shift
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.windows import no_less_work

Activation = Callable[[jax.Array], jax.Array]


class Plan(NamedTuple):
    """The layout of both maps.

    Attributes:
      first: of the map into the hidden layer.
      hidden: slots between the maps.
      second: of the map out of it.
    """

    first: Tiling
    hidden: Slots
    second: Tiling

    @property
    def area(self) -> int:
        """Multiplications per row, filled up with zeros."""
        return self.first.area + self.second.area

    def vmem(self, itemsize: int, rows: int, backward: bool) -> int:
        """Bytes that a kernel needs for tiles of ``rows``: moving blocks twice, weights once, float32 in between."""
        n, m, hidden = self.first.sizes.inputs, self.second.sizes.outputs, self.hidden.L * self.hidden.after
        middle = self.first.slots.L * self.first.slots.after + self.second.slots.L * self.second.slots.after
        if backward:
            moving, between, weight = 2 * n + m, 4 * hidden + 4 * middle, itemsize + 4
        else:
            moving, between, weight = n + m, 2 * hidden + 2 * middle, itemsize
        return (self.first.size + self.second.size) * weight + rows * (2 * itemsize * moving + 4 * between)


def plan(x: jax.Array, first: Factors, second: Factors) -> Plan:
    """Arrays or shapes.

    Raises:
      UserError: the shapes do not fit together.
    """
    one = Sizes.of(x.shape[-1], *first, 1)
    two = Sizes.of(one.outputs, *second, one.L)
    hidden = slots(one.L, two.K, two.P // two.parts)
    return Plan(tiling(one, True, taken=hidden), hidden, tiling(two, False, given=hidden))


def unsupported_reason(x: jax.Array, first: Factors, second: Factors, activation: Activation) -> str | None:
    """Why the kernel cannot run this, as the end of a sentence, or None."""
    if reason := vmem.unsupported_rows(x):
        return reason
    p = plan(x, first, second)
    blocks = max(p.hidden.K, p.hidden.L, p.first.slots.K, p.second.slots.L)
    if blocks > single.UNROLLED:
        return f"{blocks} blocks are more than the {single.UNROLLED} it is unrolled for"
    return vmem.excess("its backward", p.vmem(x.dtype.itemsize, single.ROWS[-1], backward=True))


def slower_reason(x: jax.Array, first: Factors, second: Factors, activation: Activation) -> str | None:
    """Why two products would be faster, as the end of a sentence, or None."""
    p = plan(x, first, second)
    hidden = p.first.sizes.outputs
    return no_less_work(p.area, hidden, p.first.sizes.inputs + p.second.sizes.outputs)


def run(x: jax.Array, first: Factors, second: Factors, activation: Activation) -> jax.Array:
    """See ``vit_jax.kernels.monarch_mlp``."""
    p = plan(x, first, second)
    y = _perceptron(p, activation, vmem.images(x), *first, *second)
    return jnp.reshape(y, (*x.shape[:-1], p.second.sizes.outputs))


def _weights(p: Plan, dtype: Any, k11: Any, k12: Any, b1: Any, k21: Any, k22: Any) -> tuple[jax.Array, ...]:
    one, two = (lay_out(t, a.astype(dtype), b.astype(dtype)) for t, a, b in ((p.first, k11, k12), (p.second, k21, k22)))
    bias = jnp.zeros(p.first.sizes.outputs) if b1 is None else b1
    return *one, *two, lay_out_bias(p.first, bias)


def _gradients(
    p: Plan, activation: Activation, x: Any, k11: Any, k12: Any, b1: Any, k21: Any, k22: Any, b2: Any, g: Any
) -> Any:
    weights = _weights(p, x.dtype, k11, k12, b1, k21, k22)
    run = functools.partial(_backward, p, activation)
    (dx,), (w11, w12, w21, w22, d1, d2) = shard_rows(run, (x, g.astype(x.dtype)), weights)
    grads = (*take_back(p.first, w11, w12), *take_back(p.second, w21, w22))
    shape = jax.ShapeDtypeStruct((p.first.sizes.outputs,), jnp.float32)
    (d1,) = jax.linear_transpose(functools.partial(lay_out_bias, p.first), shape)(d1)
    e11, e12, e21, e22 = (d.astype(k.dtype) for d, k in zip(grads, (k11, k12, k21, k22), strict=True))
    e1, e2 = (None if b is None else d.astype(b.dtype) for b, d in ((b1, d1), (b2, d2[0])))
    return dx, e11, e12, e1, e21, e22, e2


@differentiable(_gradients, static=2)
def _perceptron(
    p: Plan, activation: Activation, x: Any, k11: Any, k12: Any, b1: Any, k21: Any, k22: Any, b2: Any
) -> jax.Array:
    whole = *_weights(p, x.dtype, k11, k12, b1, k21, k22), shift(b2, p.second.sizes.outputs)
    (y,), _ = shard_rows(functools.partial(_forward, p, activation), (x,), whole)
    return y


def _tile(p: Plan, x: jax.Array, backward: bool) -> int:
    return vmem.even("monarch_mlp", single.ROWS, x.shape[-2], lambda rows: p.vmem(x.dtype.itemsize, rows, backward))


def _forward(p: Plan, activation: Activation, x: jax.Array, *whole: jax.Array) -> Any:
    kernel = functools.partial(_forward_kernel, p, activation)
    tile, outputs = _tile(p, x, False), (p.second.sizes.outputs,)
    return tuple(vmem.over_rows(kernel, "monarch_mlp_forward", tile, (x,), whole, outputs, ())), ()


def _backward(p: Plan, activation: Activation, x: jax.Array, g: jax.Array, *weights: jax.Array) -> Any:
    kernel = functools.partial(_backward_kernel, p, activation, x.shape[-2])
    sums = *(w.shape for w in weights), (1, g.shape[-1])
    tile = _tile(p, x, True)
    dx, *found = vmem.over_rows(kernel, "monarch_mlp_backward", tile, (x, g), weights, (x.shape[-1],), sums)
    return (dx,), tuple(found)


def _hidden(p: Plan, middle: Any, w12: Any, b1: Any) -> list[jax.Array]:
    """What the activation is applied to, float32, in the slots of the blocks that give."""
    return [dot(z, w12[i], 1, 1) + b1[i] for i, z in enumerate(middle)]


def _active(p: Plan, activation: Activation, hidden: Any, dtype: Any) -> list[list[jax.Array]]:
    """The active hidden layer, in the slots of the blocks that take."""
    return [[h.astype(dtype)] for h in exchange(p.hidden, [activation(a) for a in hidden])]


def _forward_kernel(
    p: Plan, activation: Activation, x: Any, w11: Any, w12: Any, w21: Any, w22: Any, b1: Any, b2: Any, y: Any
) -> None:
    sources = [[x[:, w.columns] for w in windows] for windows in p.first.sources]
    hidden = _hidden(p, single.middle(p.first, sources, w11), w12, b1)
    middle = single.middle(p.second, _active(p, activation, hidden, x.dtype), w21)
    single.outward(p.second, middle, w22, b2, y)


def _backward_kernel(p: Plan, activation: Activation, rows: int, *refs: Any) -> None:
    x, g, w11, w12, w21, w22, b1, dx, dw11, dw12, dw21, dw22, db1, db2 = refs
    sources, targets = single.read(p.first, rows, x), single.read_targets(p.second, rows, g)
    one = single.middle(p.first, sources, w11)
    hidden = _hidden(p, one, w12, b1)
    active = _active(p, activation, hidden, x.dtype)
    back = single.outward_back(single.middle(p.second, active, w21), targets, w22, dw22)
    back = exchange(p.hidden, single.middle_back(p.second, back, active, w21, dw21), back=True)
    slopes = [jax.vjp(activation, a)[1](h)[0] for a, h in zip(hidden, back, strict=True)]
    for i, slope in enumerate(slopes):
        db1[i] += jnp.sum(slope, axis=0, keepdims=True)
    db2[...] += jnp.sum(vmem.inside(g[...], pl.program_id(1), rows).astype(jnp.float32), axis=0, keepdims=True)
    back = single.outward_back(one, [s.astype(x.dtype) for s in slopes], w12, dw12)
    single.write(p.first, single.middle_back(p.first, back, sources, w11, dw11), dx)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="tpu")
