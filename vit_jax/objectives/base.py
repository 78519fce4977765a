"""What the train step asks of an objective, and the base of those whose loss is a mean over examples.

The step never differentiates by itself: it calls :meth:`Objective.value_and_grad`, because how a loss adds up over
micro-batches is part of the loss. A mean over examples adds up as sums (:class:`PerExample`); a contrastive loss needs
all embeddings first and brings its own two-pass form.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.metrics import Mean
from vit_jax.types import Array, Batch, Params, PRNGKey

Apply = Any
"""``apply(params, *inputs, train=..., rngs=..., method=...)``: the model as a function of its parameters."""
Metrics = dict[str, Mean]
Rngs = Mapping[str, PRNGKey]


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass with these methods; put it into ``OBJECTIVES`` and no other line changes."""

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """``model`` with what only the data know: the number of classes, the size of the vocabulary."""
        ...

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch (float32 scalar) and its metrics."""
        ...

    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        """Loss, metrics and the exact gradient of the whole batch, computed in ``micro`` slices one after the other."""
        ...


def split(batch: Batch, parts: int) -> dict[str, jax.Array]:
    """[B, ...] -> [parts, B/parts, ...]; part i takes rows i, i + parts, ...

    The stride leaves each device with the rows it has, and the parts the same on any number of devices.
    """

    def one(x: Array) -> jax.Array:
        x = jnp.swapaxes(jnp.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:])), 0, 1)
        return sharding.constrain(x, None, "batch", *[None] * (x.ndim - 2))

    return {k: one(v) for k, v in batch.items()}


def fold(rngs: Rngs, i: int | jax.Array) -> dict[str, PRNGKey]:
    """The streams of slice ``i``."""
    return {k: jax.random.fold_in(v, i) for k, v in rngs.items()}


class PerExample(abc.ABC):
    """Objectives whose loss is the mean of one number per valid example (``batch["mask"]``)."""

    @abc.abstractmethod
    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Losses float32[B] and further metrics."""

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        losses, metrics = self.per_example(apply, params, batch, rngs, train=train)
        loss = Mean.of(losses, batch["mask"])
        return loss.value(), {"loss": loss, **metrics}

    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int = 1
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        def summed(params: Params, part: Batch, rngs: Rngs) -> tuple[jax.Array, Metrics]:
            losses, metrics = self.per_example(apply, params, part, rngs, train=True)
            loss = Mean.of(losses, part["mask"])
            return jnp.asarray(loss.total), {"loss": loss, **metrics}

        grad = jax.grad(summed, has_aux=True)
        if micro == 1:
            grads, metrics = grad(params, batch, fold(rngs, 0))
        else:

            def body(carry: Any, part: Any) -> tuple[Any, None]:
                i, rows = part
                return jax.tree.map(jnp.add, carry, grad(params, rows, fold(rngs, i))), None

            parts = split(batch, micro)
            shapes = jax.eval_shape(grad, params, {k: v[0] for k, v in parts.items()}, fold(rngs, 0))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(body, zeros, (jnp.arange(micro), parts))
        count = jnp.maximum(metrics["loss"].count, 1)  # nothing valid: a zero gradient, not 0/0
        return (metrics["loss"].value(), metrics), jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
