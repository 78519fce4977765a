"""Convolution over all tokens with a filter as long as the sequence, by two Monarch products instead of attention.

Monarch Mixer (Fu et al. 2023, arXiv:2310.12109) mixes tokens by ``y = v * filter``, the filter of each channel reaching
over the whole sequence in both directions (section 3.3, as Hyena's, Poli et al. 2023, arXiv:2302.10866). The transform
behind a convolution is a Monarch matrix: a discrete Fourier transform over P x Q points is one over the P rows, a
phase, and one over the Q columns. Its output permutation need not be carried out, as the inverse undoes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config, sharding
from vit_jax.layers.linear import Linear, logical


def long_conv(x: jax.Array, forward: jax.Array, backward: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """``y[n] = sum_{m <= n} forward[n - m] x[m] + sum_{m > n} backward[m - n - 1] x[m]`` per channel.

    Args:
      x: ``[B, N, D]``.
      forward: ``[N, D]``, the filter from a token's own position on back.
      backward: ``[N, D]``, the filter from the next position on; its last row has no influence.
      implementation: a name in :data:`IMPLEMENTATIONS`; None is "fft" on a CPU, where it is 1.2 to 2.6 times as
        fast (``experiments/benchmarks/m2_tokens.py``, 196 to 16,384 tokens), and else "monarch", made for matrix units.

    Returns:
      ``[B, N, D]`` in the type of ``x``, computed in float32. Costs O(N^1.5) ("monarch") or O(N log N) ("fft").

    Raises:
      UsageError: an unknown implementation.
    """
    usual = "fft" if sharding.platform() == "cpu" else "monarch"
    run = config.lookup(IMPLEMENTATIONS, implementation or usual, "implementation of long_conv")
    wide = (a.astype(jnp.float32) for a in (x, forward, backward))
    return run(*wide).astype(x.dtype)


def _circular(forward: jax.Array, backward: jax.Array, size: int) -> jax.Array:
    """``[size, D]``: the filter on a circle of ``size`` >= 2 N points, lag -1 at its end."""
    gap = jnp.zeros((size - 2 * len(forward) + 1, forward.shape[1]), forward.dtype)
    return jnp.concatenate([forward, gap, backward[:-1][::-1]])


def conv_fft(x: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """By the library's fast Fourier transform."""
    n = x.shape[1]
    filters = jnp.fft.rfft(_circular(forward, backward, 2 * n), axis=0)
    return jnp.fft.irfft(jnp.fft.rfft(x, 2 * n, axis=1) * filters[None], 2 * n, axis=1)[:, :n]


@functools.lru_cache(maxsize=16)
def _factors(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms over rows ``[2, P, P]`` and columns ``[2, Q, Q]`` and the phase ``[2, P, Q]`` between (cos, sin).

    P Q >= 2 n points, P even and about twice Q: the sequence fills the first P/2 rows.
    """
    q = max(1, math.isqrt(n - 1) + 1)
    p = 2 * -(-n // q)

    def wave(a: int, b: int, period: int) -> np.ndarray:
        angle = 2 * np.pi * (np.outer(np.arange(a), np.arange(b)) % period) / period
        return np.stack([np.cos(angle), -np.sin(angle)]).astype(np.float32)

    return wave(p, p, p), wave(q, q, q), wave(p, q, p * q)


def _times(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    """Product of complex numbers given as (real, imaginary)."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _spectrum(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The transform of real ``x [B, R Q, D]``, R <= P rows: (real, imaginary) ``[B, P, Q, D]``, not put in order."""
    rows, columns, phase = _factors(n)
    x = x.reshape(x.shape[0], -1, columns.shape[-1], x.shape[-1])
    a = jnp.einsum("zkr,brqd->zbkqd", rows[:, :, : x.shape[1]], x, preferred_element_type=jnp.float32)
    real, imaginary = _times(a, phase[:, None, :, :, None])
    pair = jnp.stack([real, imaginary])
    c, s = columns
    mixed = jnp.asarray(np.stack([np.stack([c, -s]), np.stack([s, c])]))
    out = jnp.einsum("yzlq,zbkqd->ybkld", mixed, pair, preferred_element_type=jnp.float32)
    return out[0], out[1]


def conv_monarch(x: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """By two block-diagonal products each way, rows that are padding or cut off left out."""
    b, n, d = x.shape
    rows, columns, phase = _factors(n)
    p, q = phase.shape[1:]
    kept = p // 2
    filters = _spectrum(_circular(forward, backward, p * q)[None], n)
    real, imaginary = _times(_spectrum(jnp.pad(x, ((0, 0), (0, kept * q - n), (0, 0))), n), filters)
    c, s = columns
    mixed = jnp.asarray(np.stack([np.stack([c, s]), np.stack([-s, c])]))  # the inverse: conjugate waves
    a = jnp.einsum("yzlq,zbkld->ybkqd", mixed, jnp.stack([real, imaginary]), preferred_element_type=jnp.float32)
    back = phase * np.array([1, -1], np.float32).reshape(2, 1, 1)
    pair = jnp.stack(_times(a, back[:, None, :, :, None]))
    c, s = rows[:, :, :kept]
    y = jnp.einsum("zkr,zbkqd->brqd", np.stack([c, s]) / (p * q), pair, preferred_element_type=jnp.float32)
    return y.reshape(b, kept * q, d)[:, :n]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"monarch": conv_monarch, "fft": conv_fft}
"""``(x, forward, backward)`` float32 -> ``y`` float32."""


class Filter(nn.Module):
    """A long filter as a function of the position, so that the parameters fit any number of tokens.

    A small MLP with sine activations over the position's waves, faded out at a rate that differs per channel (Poli et
    al. 2023, appendix D.3).

    Attributes:
      channels: channels D, one filter each.
      features: number of features of a position: itself and (features - 1) / 2 waves; odd.
      hidden: width of the MLP that computes the filter.
      layers: hidden layers of that MLP after the first.
      frequency: initial frequency of the sines, one trained number a channel of the MLP.
    """

    channels: int
    features: int = 33
    hidden: int = 128
    layers: int = 1
    frequency: float = 1.0

    @nn.compact
    def __call__(self, tokens: int) -> jax.Array:
        """float32 ``[tokens, D]``."""
        time = np.linspace(0, 1, tokens)
        bands = (self.features - 1) // 2
        waves = np.outer(2 * np.pi * np.arange(tokens) / tokens, np.linspace(1e-4, bands - 1, bands))
        x = jnp.asarray(np.concatenate([time[:, None], np.cos(waves), -np.sin(waves)], axis=1), jnp.float32)
        init = logical(nn.initializers.constant(self.frequency), (None,))
        frequency = self.param("frequency", init, (self.hidden,)).reshape(1, -1)
        for i in range(1 + self.layers):
            x = jnp.sin(frequency * Linear(self.hidden, (None, None), name=f"hidden_{i}")(x))
        y = Linear(self.channels, (None, "embed"), use_bias=False, name="out")(x)
        decay = np.abs(np.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, self.channels))
        return y * jnp.asarray(np.exp(-np.outer(time, decay)), jnp.float32)
