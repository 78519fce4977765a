"""Pairs of channels of queries and keys that turn (Su et al. 2021, arXiv:2104.09864, section 3.2.2)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.tree_util.register_dataclass, data_fields=("cos", "sin"), meta_fields=("pair",))
@dataclasses.dataclass(frozen=True)
class Rotation:
    """``x * cos + other(x) * sin``, where ``other`` exchanges the channels of every pair.

    Attributes:
      cos: float32 ``[N, E]``, or ``[N, K, E]`` where heads turn in their own way.
      sin: likewise, negated at the first channel of a pair.
      pair: how far apart the channels of a pair are; of 2 * pair the first half come first.
    """

    cos: jax.Array
    sin: jax.Array
    pair: int

    @classmethod
    def of(cls, angle: jax.Array, tokens: int, *, neighbours: bool) -> Rotation:
        """By ``angle [P, E / 2]``, or ``[P, K, E / 2]``, of the last P tokens; those before them stay as they are.

        Args:
          angle: in radians.
          tokens: N.
          neighbours: whether two neighbours are a pair, or the i-th of either half.
        """
        angle = jnp.pad(angle, ((tokens - len(angle), 0), *[(0, 0)] * (angle.ndim - 1)))
        cos, sin, pairs = jnp.cos(angle), jnp.sin(angle), angle.shape[-1]
        both = functools.partial(jnp.stack if neighbours else jnp.concatenate, axis=-1)
        shape = (*angle.shape[:-1], 2 * pairs)
        return cls(both([cos, cos]).reshape(shape), both([-sin, sin]).reshape(shape), 1 if neighbours else pairs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, K, E]``, turned in float32, in its type."""
        cos, sin = (y if y.ndim == 3 else y[:, None] for y in (self.cos, self.sin))
        wide = x.astype(jnp.float32)
        other = wide.reshape(*x.shape[:-1], -1, 2, self.pair)[..., ::-1, :].reshape(x.shape)
        return (wide * cos[None] + other * sin[None]).astype(x.dtype)
