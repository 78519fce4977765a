"""What the backward pass keeps of the forward pass, in eight bits: Mesa (Pan et al. 2021, arXiv:2111.11124).

The forward pass is exact. What it leaves to the backward pass is rounded to one of 256 steps between the least and the
largest number of its group, up or down at random, so that on average nothing is added (section 3):

    step = (max - min) / 255,    steps = floor((x - min) / step + u),    u ~ U(0, 1),    x ~ steps * step + min.

The paper rounds layer by layer, with a group for each head or slice of channels, its range a running average, and
random numbers of a generator. Here it is done to whatever a function leaves to its gradient. A group is a row of the
last axis, a token's channels or a query's probabilities, with the range that it has, and u is a sequence that starts
where the bits of this range say: no state, no key, nothing of other images, and a step that is repeated is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen.transforms import lift_transform
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core import Literal as Constant

Saved = Literal["float", "int8"]
"""As which numbers the backward pass keeps what it keeps."""
TOP = 255
GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio: its multiples, modulo 2**32, are spread evenly however many there are."""


class Rows(NamedTuple):
    """``[..., n]`` in eight bits.

    Attributes:
      steps: uint8 ``[..., n]``.
      step: float32 ``[..., 1]``.
      least: float32 ``[..., 1]``.
      like: empty, in the type of what this stands for.
    """

    steps: jax.Array
    step: jax.Array
    least: jax.Array
    like: jax.Array


def pack(x: jax.Array) -> Rows:
    """``x [..., n]`` in eight bits: off by less than a step, and not at all at a row's least and in rows of one number.

    A row with NaN or an infinity becomes NaN.
    """
    wide = x.astype(jnp.float32)
    least = jnp.min(wide, axis=-1, keepdims=True)
    step = (jnp.max(wide, axis=-1, keepdims=True) - least) / TOP
    steps = (wide - least) / jnp.where(step == 0, 1.0, step) + _noise(step, least, x.shape[-1])
    return Rows(jnp.clip(steps, 0, TOP).astype(jnp.uint8), step, least, jnp.zeros((0,), x.dtype))


def _noise(step: jax.Array, least: jax.Array, n: int) -> jax.Array:
    """float32 ``[..., n]`` in [0, 1), evenly spread along a row from where its own bits say (a Weyl sequence)."""
    a, b = (jax.lax.bitcast_convert_type(v, jnp.uint32) for v in (step, least))
    start = a * jnp.uint32(0x85EBCA6B) ^ b * jnp.uint32(0xC2B2AE35)
    start = (start ^ start >> 15) * jnp.uint32(0x2C1B3C6D)  # mixes the high bits, which neighbours share, into the low
    start = start ^ start >> 13
    along = jax.lax.broadcasted_iota(jnp.uint32, (*step.shape[:-1], n), step.ndim - 1) * jnp.uint32(GOLDEN)
    return ((along + start) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def unpack(rows: Rows) -> jax.Array:
    """What :func:`pack` was given, off by less than a step."""
    return (rows.steps.astype(jnp.float32) * rows.step + rows.least).astype(rows.like.dtype)


def in_int8(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` that keeps for its gradient what it keeps in eight bits, where that is less.

    Args:
      f: of a pytree of weights and of others; all that it is differentiated by is among them. What follows from the
        weights alone is kept as it is, and so is all that is no float.

    Returns:
      A function of the same arguments and the same values, with gradients of what was rounded.
    """
    run = jax.custom_vjp(lambda *args: f(*args))
    run.defvjp(functools.partial(_forward, f), _backward)
    return run


def _forward(f: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    program, shapes = jax.make_jaxpr(functools.partial(jax.vjp, f), return_shape=True)(*args)
    leaves = jaxpr_as_fun(program)(*jax.tree.leaves(args))
    first = len(jax.tree.leaves(args[0]))
    y, vjp = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    moving = jax.tree.unflatten(jax.tree.structure(shapes), _moving(program, first))[1]
    return y, jax.tree.map(lambda x, moves: pack(x) if moves and _pays(x) else x, vjp, moving)


def _backward(saved: Any, g: Any) -> Any:
    leaves, tree = jax.tree.flatten(saved, is_leaf=lambda x: isinstance(x, Rows))
    rows = {i: x for i, x in enumerate(leaves) if isinstance(x, Rows)}
    # XLA would otherwise round where it takes back, and keep the floats till then. What follows from weights alone, a
    # norm's scale spread over the tokens for instance, it makes anew as ever.
    rows, g = jax.lax.optimization_barrier((rows, g))
    vjp = jax.tree.unflatten(tree, [unpack(rows[i]) if i in rows else x for i, x in enumerate(leaves)])
    return vjp(g)


def _pays(x: jax.Array) -> bool:
    """Whether eight bits a number, and eight bytes a row, are less than what it takes."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or not x.ndim:
        return False
    return x.shape[-1] + 8 < x.shape[-1] * x.dtype.itemsize


def _moving(program: ClosedJaxpr, first: int) -> Sequence[bool]:
    """Of each result whether it follows from any argument behind the ``first``."""
    jaxpr = program.jaxpr
    moving = set(jaxpr.invars[first:])
    reads = lambda v: not isinstance(v, Constant) and v in moving  # noqa: E731
    for equation in jaxpr.eqns:
        if any(map(reads, equation.invars)):
            moving.update(equation.outvars)
    return [reads(v) for v in jaxpr.outvars]


def saved_in_int8(body: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`in_int8` of a function of a Linen module and of pytrees of arrays; its variables are the weights."""

    def lifted(scoped: Callable[..., Any]) -> Any:
        def inner(scope_of: Any, repack: Any, variables: Any, rngs: Any, *args: Any) -> Any:
            def f(variables: Any, rngs: Any, *args: Any) -> Any:
                scope = scope_of(variables, rngs)
                return scoped(scope, *args), repack(scope)

            return in_int8(f)(variables, rngs, *args)

        return lift.pack(inner, (True,), (True,), (True,), name="saved_in_int8")

    return lift_transform(lifted, body)


SAVED: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "float": lambda body: body,
    "int8": saved_in_int8,
}
"""What becomes of the function of a block."""
