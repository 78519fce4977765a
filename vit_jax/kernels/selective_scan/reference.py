"""The recurrence in float64 NumPy, token by token: what every implementation is held against."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]


def _wide(*arrays: Any) -> Arrays:
    return tuple(np.asarray(v, np.float64) for v in arrays)


def states(x: Any, delta: Any, a: Any, b: Any) -> np.ndarray:
    """The state before the first token and after every one, ``[B, N + 1, E, n]``."""
    x, delta, a, b = _wide(x, delta, a, b)
    h = np.zeros((x.shape[0], x.shape[1] + 1, *a.shape))
    for t in range(x.shape[1]):
        h[:, t + 1] = np.exp(delta[:, t, :, None] * a) * h[:, t] + (delta * x)[:, t, :, None] * b[:, t, None]
    return h


def scan(x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any) -> np.ndarray:
    """``[B, N, E]``; the arguments of :func:`vit_jax.kernels.selective_scan.selective_scan`."""
    y: np.ndarray = np.einsum("bten,btn->bte", states(x, delta, a, b)[:, 1:], _wide(c)[0]) + _wide(d)[0] * _wide(x)[0]
    return y


def gradients(x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, g: Any) -> Arrays:
    """Gradients of ``sum(g * scan)``, ``g [B, N, E]``, with respect to every argument."""
    h = states(x, delta, a, b)
    x, delta, a, b, c, d, g = _wide(x, delta, a, b, c, d, g)
    dx, ddelta, da, db, dc = d * g, np.zeros_like(x), np.zeros_like(a), np.zeros_like(b), np.zeros_like(c)
    dh = np.zeros_like(h[:, 0])
    for t in reversed(range(x.shape[1])):
        dh = dh + g[:, t, :, None] * c[:, t, None]
        dc[:, t] = np.einsum("be,ben->bn", g[:, t], h[:, t + 1])
        db[:, t] = np.einsum("be,ben->bn", (delta * x)[:, t], dh)
        step = np.einsum("bn,ben->be", b[:, t], dh)  # gradient of delta x
        dx[:, t] += delta[:, t] * step
        decay = np.exp(delta[:, t, :, None] * a)
        exponent = dh * decay * h[:, t]
        ddelta[:, t] = x[:, t] * step + np.sum(exponent * a, axis=-1)
        da += np.einsum("ben,be->en", exponent, delta[:, t])
        dh = dh * decay
    return dx, ddelta, da, db, dc, np.sum(g * x, axis=(0, 1))
