"""Linear maps in eight bits: weights by row, activations in a range that training calibrates (Jacob et al. 2018)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.layers.linear import Dense, Linear

LEVELS = 127.0


def rounded(x: jax.Array, largest: jax.Array) -> jax.Array:
    """``x`` in steps of ``largest / 127``, with the gradient of the identity inside the range."""
    step = jnp.maximum(largest, 1e-8) / LEVELS
    found = jnp.round(jnp.clip(x / step, -LEVELS, LEVELS)) * step
    inside = jnp.where(jnp.abs(x) <= largest, x, jax.lax.stop_gradient(x))
    return inside + jax.lax.stop_gradient(found - inside)


class Int8Linear(Linear):
    """A dense map that computes as its eight-bit version would; collection ``ranges`` holds ``input``, float32[].

    Attributes:
      decay: of the moving maximum of the input's magnitude, in training.
    """

    decay: float = 0.9

    def product(self, x, kernel, bias):
        largest = self.variable("ranges", "input", lambda: jnp.zeros(()))
        if self.is_mutable_collection("ranges") and not self.is_initializing():
            now = jnp.max(jnp.abs(x)).astype(jnp.float32)
            largest.value = jnp.where(largest.value == 0, now, self.decay * largest.value + (1 - self.decay) * now)
        columns = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
        seen = jnp.where(largest.value == 0, jnp.max(jnp.abs(x)).astype(jnp.float32), largest.value)
        return super().product(
            rounded(x, seen.astype(x.dtype)), rounded(kernel, jnp.broadcast_to(columns, kernel.shape)), bias
        )


@dataclasses.dataclass(frozen=True)
class Int8(Dense):
    """A dense map of eight-bit weights and activations.

    Attributes:
      decay: of the moving maximum of the input's magnitude, in training.
    """

    decay: float = 0.9

    def __call__(self, features: int, **options: Any) -> Int8Linear:
        return Int8Linear(features, decay=self.decay, **options)
