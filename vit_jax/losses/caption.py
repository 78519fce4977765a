"""Cross-entropy over a vocabulary, from the states of a decoder: the logits of all tokens are never there at once."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vit_jax.checks import INFINITE, SMOOTHING, Range
from vit_jax.kernels.products import differentiable
from vit_jax.losses.pairs import accumulator
from vit_jax.types import Array

CHUNK = 1024
"""Tokens whose logits are in memory at a time: 200 MB for 49,408 words. One position of all captions at least."""


def caption_cross_entropy(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> jax.Array:
    """``w [LSE_v(z) - (1 - e) z_target - e mean_v(z) + c LSE_v(z)^2]`` per token, with ``z = hidden @ kernel``.

    Cut along positions, so that captions stay with the devices that have them, and recomputed in the backward pass.

    Args:
      hidden: decoder states ``[B, L, D]``; their type is that of the products, which add up in float32.
      kernel: ``[D, V]``, in the parameter type.
      targets: int32 ``[B, L]``.
      weights: bool or float ``[B, L]``: 0 leaves a token out, whatever its state is.
      label_smoothing: e in [0, 1).
      z_loss: c (PaLM, arXiv:2204.02311, section 5): keeps the normaliser near 1; 1e-4 is usual.
      chunk: tokens in memory at a time.

    Returns:
      float32 ``[B, L]``, in nats.

    Raises:
      UserError: ``label_smoothing`` outside [0, 1) or ``z_loss`` below 0.
    """
    check(label_smoothing, z_loss)
    b, length = targets.shape
    positions = min(length, max(1, chunk // b))
    chunks = -(-length // positions)
    positions = -(-length // chunks)

    def cut(x: Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * positions - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(jnp.reshape(x, (b, chunks, positions, *x.shape[2:])), 1, 0)

    @jax.checkpoint
    def one(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        states, words, w = part
        states = jnp.where((w != 0)[..., None], states, jnp.zeros((), states.dtype))
        return w * _token_loss(logits(states, jnp.asarray(kernel)), words, label_smoothing, z_loss)

    parts = (cut(hidden), cut(targets), cut(jnp.asarray(weights).astype(accumulator(hidden))))
    losses = jax.lax.map(one, parts)
    return jnp.reshape(jnp.moveaxis(losses, 0, 1), (b, -1))[:, :length]


def check(label_smoothing: float, z_loss: float) -> None:
    """Raises :class:`UserError` for values that are no label smoothing or z-loss."""
    SMOOTHING.check("label_smoothing", label_smoothing)
    Range(0, INFINITE, "[)", "; 1e-4 is usual, 0 turns it off").check("z_loss", z_loss)


def _token_loss(z: jax.Array, targets: jax.Array, label_smoothing: float, z_loss: float) -> jax.Array:
    total = jax.nn.logsumexp(z, axis=-1)
    words = jax.lax.broadcasted_iota(targets.dtype, z.shape, z.ndim - 1)
    right = jnp.sum(jnp.where(words == targets[..., None], z, 0.0), axis=-1)  # a gather's gradient is a scatter
    loss = total - right
    if label_smoothing:
        loss += label_smoothing * (right - jnp.mean(z, axis=-1))
    return loss + z_loss * total**2 if z_loss else loss


def _gradients(hidden: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    g = g.astype(hidden.dtype)
    rows = range(g.ndim - 1)
    dkernel = jax.lax.optimization_barrier(_dot(hidden, g, rows, rows))  # see kernels.products.outer
    dhidden = _dot(g, kernel.astype(hidden.dtype), [g.ndim - 1], [1])
    return dhidden.astype(hidden.dtype), dkernel.astype(kernel.dtype)


@differentiable(_gradients)
def logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """``hidden @ kernel`` in float32 from operands in the type of ``hidden``: ``[..., D], [D, V] -> [..., V]``.

    Unlike :func:`vit_jax.layers.linear.matmul` it does not round the sums; in the backward pass it rounds the cotangent
    to the operands' type, so that these products are fast ones as well.
    """
    return _dot(hidden, kernel.astype(hidden.dtype), [hidden.ndim - 1], [0])


def _dot(a: jax.Array, b: jax.Array, axes_a: Sequence[int], axes_b: Sequence[int]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=accumulator(a))
