"""Chunk after chunk, an associative scan inside of each (Blelloch 1990): states of one chunk are all that is in memory.

The backward keeps the arguments and the state before every chunk, and computes the states of a chunk anew. The state's
channels come last, E of them, as they are what processors work on side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CHUNK = 32
"""Tokens of a chunk."""


def apart(x: jax.Array) -> jax.Array:
    """``[B, N, k]`` -> float32 ``[chunks, tokens of one, B, k]``, zeros behind the last: they leave the state alone."""
    images, tokens, width = x.shape
    size = min(CHUNK, max(tokens, 1))
    chunks = -(-tokens // size)
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, chunks * size - tokens), (0, 0)))
    return jnp.moveaxis(jnp.reshape(x, (images, chunks, size, width)), 0, 2)


def together(x: jax.Array, like: jax.Array) -> jax.Array:
    """The opposite, for the tokens and in the type of ``like``."""
    chunks, size, images, width = x.shape
    x = jnp.reshape(jnp.moveaxis(x, 2, 0), (images, chunks * size, width))
    return x[:, : like.shape[1]].astype(like.dtype)


def _after(first: Any, second: Any) -> Any:
    """``h -> decay * h + input`` twice."""
    return first[0] * second[0], second[0] * first[1] + second[1]


def _states(a: jax.Array, start: jax.Array, x: jax.Array, delta: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Decays of a chunk and the states after its tokens, ``[T, B, n, E]``."""
    decay = jnp.exp(delta[:, :, None] * a[None, None])
    along, states = jax.lax.associative_scan(_after, (decay, (delta * x)[:, :, None] * b[..., None]))
    return decay, states + along * start[None]


def _forward(x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[jax.Array, jax.Array]:
    """``y`` and the state before every chunk, ``[chunks, B, n, E]``."""
    rates, skip = a.astype(jnp.float32).T, d.astype(jnp.float32)[None, None]

    def body(start: jax.Array, tokens: tuple[jax.Array, ...]) -> Any:
        x, delta, b, c = tokens
        _, states = _states(rates, start, x, delta, b)
        return states[-1], (jnp.sum(states * c[..., None], axis=2) + skip * x, start)

    tokens = tuple(map(apart, (x, delta, b, c)))
    start = jnp.zeros((x.shape[0], *rates.shape))
    y, starts = jax.lax.scan(body, start, tokens)[1]
    return together(y, x), starts


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    (x, delta, a, b, c, d), starts = saved
    rates, skip = a.astype(jnp.float32).T, d.astype(jnp.float32)[None, None]

    def body(carry: Any, tokens: tuple[jax.Array, ...]) -> Any:
        behind, da, dd = carry
        x, delta, b, c, g, start = tokens
        decay, states = _states(rates, start, x, delta, b)
        before = jnp.concatenate([start[None], states[:-1]])
        later = jnp.concatenate([decay[1:], jnp.ones_like(decay[:1])])
        inner = (later, g[:, :, None] * c[..., None])
        along, dh = jax.lax.associative_scan(_after, inner, reverse=True)
        dh += along * behind[None]
        step = jnp.sum(dh * b[..., None], axis=2)  # gradient of delta x
        exponent = dh * decay * before
        found = (
            delta * step + skip * g,
            x * step + jnp.sum(exponent * rates[None, None], axis=2),
            jnp.sum(dh * (delta * x)[:, :, None], axis=3),
            jnp.sum(states * g[:, :, None], axis=3),
        )
        da += jnp.sum(exponent * delta[:, :, None], axis=(0, 1))
        return (decay[0] * dh[0], da, dd + jnp.sum(g * x, axis=(0, 1))), found

    tokens = *map(apart, (x, delta, b, c, g)), starts
    zeros = jnp.zeros_like(starts[0]), jnp.zeros_like(rates), jnp.zeros(d.shape)
    (_, da, dd), found = jax.lax.scan(body, zeros, tokens, reverse=True)
    dx, ddelta, db, dc = map(together, found, (x, delta, b, c))
    return dx, ddelta, da.T.astype(a.dtype), db, dc, dd.astype(d.dtype)


def differentiated(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., jax.Array]:
    """``forward``, which gives states to keep beside its result, with the gradients ``backward((args, states), g)``."""
    scan = jax.custom_vjp(lambda *args: forward(*args)[0])

    def kept(*args: jax.Array) -> Any:
        y, states = forward(*args)
        return y, (args, states)

    scan.defvjp(kept, backward)
    return scan


run = differentiated(_forward, _backward)
"""See ``vit_jax.kernels.selective_scan``."""
