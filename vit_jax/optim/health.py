"""The gradient's norm and finiteness, noted before SAM and clipping, after which one bad leaf has spoilt them all."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class GradStats(NamedTuple):
    """Optimizer state of :func:`track_grad_stats`.

    Attributes:
      grad_norm: global norm of the last gradient, float32 scalar.
      grad_finite: bool[number of leaves], in the order of ``jax.tree.leaves``.
    """

    grad_norm: jax.Array
    grad_finite: jax.Array


def track_grad_stats() -> optax.GradientTransformation:
    """Passes the gradient on and keeps its :class:`GradStats`."""

    def init(params: Any) -> GradStats:
        return GradStats(jnp.zeros((), jnp.float32), jnp.ones(len(jax.tree.leaves(params)), bool))

    def update(updates: Any, _: GradStats, params: Any = None) -> tuple[Any, GradStats]:
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(updates)]
        finite = jnp.stack([jnp.isfinite(s) for s in squares])
        return updates, GradStats(jnp.sqrt(sum(squares)), finite)

    return optax.GradientTransformation(init, update)
