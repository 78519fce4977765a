"""Blends of a batch with itself: mixup and cutmix, with soft labels.

Row 2i is paired with row 2i + 1 of the global batch (the last row of an odd batch with itself). Batches are shuffled,
so neighbours are random partners; and a device that holds an even number of rows exchanges no pixels with any other.
The result depends on the key and the batch only, not on the devices. A padding row (``mask`` False) gives nothing to
its partner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from vit_jax.augment.base import MixOp, inside
from vit_jax.checks import Range
from vit_jax.types import PRNGKey

Per = Literal["batch", "example"]


def partners(x: jax.Array) -> jax.Array:
    """``x`` with its rows 2i and 2i + 1 exchanged; the last of an odd number stays."""
    even = len(x) // 2 * 2
    swapped = x[:even].reshape(even // 2, 2, *x.shape[1:])[:, ::-1].reshape(x[:even].shape)
    return swapped if even == len(x) else jnp.concatenate([swapped, x[even:]])


def soft(labels: jax.Array, num_classes: int) -> jax.Array:
    """int32[B] -> one-hot float32[B,C]; labels that are soft already are returned as they are."""
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) if labels.ndim == 1 else labels


def choose(
    ops: tuple[MixOp, ...], key: PRNGKey, images: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """At most one of ``ops`` per batch: each with its ``prob``, scaled down where they add up to more than 1.

    Args:
      ops: mixing operations.
      key: of the batch.
      images: float32[B,H,W,3].
      labels: float32[B,C].
      mask: bool[B], False for padding.

    Returns:
      Mixed images and labels.
    """
    choice_key, op_key = jax.random.split(key)
    total = max(1.0, sum(op.prob for op in ops))
    edges, edge = [], 0.0
    for op in ops:
        edges.append(edge := edge + op.prob / total)
    if len(ops) == 1 and edge >= 1:
        return ops[0](op_key, images, labels, mask)
    draw = jax.random.uniform(choice_key)
    index = sum((draw >= e).astype(jnp.int32) for e in edges)
    branches: list[Callable[..., Any]] = [*ops, lambda key, images, labels, mask: (images, labels)]
    # Rounding could leave the last edge a hair below 1: then the last operation takes the rest.
    index = jnp.minimum(index, len(ops) - 1) if edge > 1 - 1e-6 else index
    return jax.lax.switch(index, branches, op_key, images, labels, mask)


Alpha = Annotated[float, Range(1e-3, 1e3, hint=", or leave the operation out for no mixing")]


@dataclasses.dataclass(frozen=True)
class _BetaMix(MixOp):
    alpha: Alpha = 1.0
    per: Per = "batch"

    def weights(self, key: PRNGKey, mask: jax.Array) -> jax.Array:
        """float32[B]: the share each row keeps of itself, Beta(alpha, alpha); 1 where the partner is padding."""
        share = jax.random.beta(key, self.alpha, self.alpha, mask.shape if self.per == "example" else (1,))
        return jnp.where(partners(mask), jnp.broadcast_to(share, mask.shape), 1.0)


def _mix(x: jax.Array, share: jax.Array) -> jax.Array:
    share = jnp.expand_dims(share, tuple(range(1, x.ndim)))
    return share * x + (1 - share) * partners(x)


@dataclasses.dataclass(frozen=True)
class Mixup(_BetaMix):
    """Convex combination of two images and of their labels (Zhang et al. 2018).

    Attributes:
      prob: probability that a batch is mixed.
      alpha: parameter of Beta(alpha, alpha), from which the weight of the first image is drawn.
      per: whether one weight is drawn for the ``"batch"`` or one per ``"example"``.
    """

    alpha: Alpha = 0.2

    def __call__(
        self, key: PRNGKey, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share = self.weights(key, mask)
        return _mix(images, share), _mix(labels, share)


@dataclasses.dataclass(frozen=True)
class Cutmix(_BetaMix):
    """A random rectangle of the partner's pixels, labels weighted by the pixels kept (Yun et al. 2019, algorithm 1).

    Attributes:
      prob: probability that a batch is mixed.
      alpha: parameter of Beta(alpha, alpha), from which the share of the area that is kept is drawn, before clipping at
        the border.
      per: whether one rectangle is drawn for the ``"batch"`` or one per ``"example"``.
    """

    def __call__(
        self, key: PRNGKey, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share_key, place_key = jax.random.split(key)
        h, w = images.shape[1:3]
        place = jax.random.uniform(place_key, (2, len(mask) if self.per == "example" else 1))
        half = jnp.sqrt(1 - self.weights(share_key, mask)) / 2
        centre = jnp.broadcast_to(place, (2, len(mask)))
        edges = [
            [jnp.clip(jnp.round((c + side * half) * n), 0, n) for c, n in zip(centre, (h, w), strict=True)]
            for side in (-1, 1)
        ]
        cut = jax.vmap(lambda start, stop: inside(h, w, start, stop))(jnp.stack(edges[0], 1), jnp.stack(edges[1], 1))
        return jnp.where(cut, partners(images), images), _mix(labels, 1 - cut.mean(axis=(1, 2, 3)))
