"""Token after token, for a CPU: an associative scan moves its states through memory once for each power of two.

Outputs come as the state goes by, and no state is kept but that before every chunk; the backward computes those of a
chunk anew and goes through it from its end. The state's channels come last, as in :mod:`.xla`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.selective_scan.xla import apart, differentiated, together


def _next(rates: jax.Array, h: jax.Array, x: jax.Array, delta: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decay of a token ``x [B, E]`` and the state ``[B, n, E]`` after it."""
    decay = jnp.exp(delta[:, None] * rates[None])
    return decay, decay * h + (delta * x)[:, None] * b[..., None]


def _forward(x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[jax.Array, jax.Array]:
    """``y`` and the state before every chunk, ``[chunks, B, n, E]``."""
    rates, skip = a.astype(jnp.float32).T, d.astype(jnp.float32)[None]

    def token(h: jax.Array, args: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, delta, b, c = args
        _, h = _next(rates, h, x, delta, b)
        return h, jnp.sum(h * c[..., None], axis=1) + skip * x

    def chunk(start: jax.Array, tokens: tuple[jax.Array, ...]) -> Any:
        end, y = jax.lax.scan(token, start, tokens)
        return end, (y, start)

    start = jnp.zeros((x.shape[0], *rates.shape))
    y, starts = jax.lax.scan(chunk, start, tuple(map(apart, (x, delta, b, c))))[1]
    return together(y, x), starts


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    (x, delta, a, b, c, d), starts = saved
    rates, skip = a.astype(jnp.float32).T, d.astype(jnp.float32)[None]

    def state(h: jax.Array, args: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return _next(rates, h, *args)[1], h

    def token(carry: Any, args: tuple[jax.Array, ...]) -> Any:
        behind, da, dd = carry
        x, delta, b, c, g, before = args
        decay, h = _next(rates, before, x, delta, b)
        dh = behind + g[:, None] * c[..., None]
        step = jnp.sum(dh * b[..., None], axis=1)  # gradient of delta x
        exponent = dh * decay * before
        found = (
            delta * step + skip * g,
            x * step + jnp.sum(exponent * rates[None], axis=1),
            jnp.sum(dh * (delta * x)[:, None], axis=2),
            jnp.sum(h * g[:, None], axis=2),
        )
        da += jnp.sum(exponent * delta[:, None], axis=0)
        return (decay * dh, da, dd + jnp.sum(g * x, axis=0)), found

    def chunk(carry: Any, tokens: tuple[jax.Array, ...]) -> Any:
        x, delta, b, c, g, start = tokens
        _, before = jax.lax.scan(state, start, (x, delta, b))
        return jax.lax.scan(token, carry, (x, delta, b, c, g, before), reverse=True)

    zeros = jnp.zeros_like(starts[0]), jnp.zeros_like(rates), jnp.zeros(d.shape)
    tokens = *map(apart, (x, delta, b, c, g)), starts
    (_, da, dd), found = jax.lax.scan(chunk, zeros, tokens, reverse=True)
    dx, ddelta, db, dc = map(together, found, (x, delta, b, c))
    return dx, ddelta, da.T.astype(a.dtype), db, dc, dd.astype(d.dtype)


run = differentiated(_forward, _backward)
"""See ``vit_jax.kernels.selective_scan``."""
