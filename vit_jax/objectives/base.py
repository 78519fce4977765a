"""What the train step asks of an objective, and the base of those whose loss is a mean over examples.

The step never differentiates by itself: it calls :meth:`Objective.value_and_grad`, because how a loss adds up over
micro-batches is part of the loss. A mean over examples adds up as sums (:class:`PerExample`); a contrastive loss needs
all embeddings first and brings its own two-pass form.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.checks import Checked
from vit_jax.metrics import Mean
from vit_jax.models import ModelFn, Variables
from vit_jax.types import Array, Batch, OutputActivation, Params, PRNGKey

Apply = Callable[..., Any]
"""``apply(params, *inputs, train=..., rngs=..., method=...)``: the model as a function of its parameters."""
Metrics = dict[str, Mean]
Rngs = Mapping[str, PRNGKey]
VARIABLES = "variables"
"""Name of the mean, over slices, of what a training forward pass made of the model's variables: no metric to log."""


class Objective(Checked, abc.ABC):
    """What is minimised, and all that a train step may ask of it. Put a frozen dataclass into ``OBJECTIVES``.

    The two methods without a body are needed; all else has defaults that suit most objectives. The values of
    :attr:`state_metrics` and of a model's variables are means over the whole batch, however many slices it is computed
    in.
    """

    min_batch_size: ClassVar[int] = 1
    """Smallest batch that it makes sense for; checked before a run begins."""
    views: ClassVar[int] = 1
    """How many augmentations of each image a step makes; with more than one, ``batch["image"]`` is a tuple of them."""
    rng_streams: ClassVar[tuple[str, ...]] = ("dropout",)
    """Names of the random streams that training takes."""
    state_metrics: ClassVar[tuple[str, ...]] = ()
    """Those of its metrics that are there for :meth:`update_state` and not for the log; arrays of any shape."""
    output_activation: OutputActivation | None = None
    """How logits become probabilities; None where the model has no logits that mean classes or pairs."""

    @abc.abstractmethod
    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch (float32 scalar) and its metrics."""

    @abc.abstractmethod
    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        """Loss, metrics and the exact gradient of the whole batch, computed in ``micro`` slices one after the other."""

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """``model`` with what only the data know: the number of classes, the size of the vocabulary."""
        return model

    def frozen_inputs(self, load: Callable[[Any], Any]) -> Any:
        """Arrays that it reads and that never change, a pytree on the mesh; None for none.

        Args:
          load: loads the teacher of a :class:`~vit_jax.objectives.distill.Distill`.
        """
        return None

    def init_state(self, params: Params) -> Any:
        """What it carries from step to step (a momentum teacher, a centre, a queue), a pytree; () for nothing."""
        return ()

    def bind(self, frozen: Any, state: Any) -> Objective:
        """The objective with its :meth:`frozen_inputs` and state at hand, as one step differentiates it."""
        return self

    def update_state(self, state: Any, params: Params, metrics: Metrics) -> Any:
        """The state after a step.

        Args:
          state: before it.
          params: the parameters that the step led to.
          metrics: of the whole batch, :attr:`state_metrics` among them.
        """
        return state


class Recorder:
    """``apply`` that remembers what training forward passes made of the model's variables, the last one counts.

    Made and read inside one traced function, so that nothing leaks.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._variables = apply.variables if isinstance(apply, ModelFn) else {}

    def __call__(self, params: Params, *inputs: Any, mutable: Sequence[str] = (), **options: Any) -> Any:
        if not self._variables or not options.get("train"):
            return self._apply(params, *inputs, **options, **({"mutable": mutable} if mutable else {}))
        bound = Variables(params, self._variables)
        out, state = self._apply(bound, *inputs, **options, mutable=[*mutable, *self._variables])
        self._variables = {name: state.get(name, old) for name, old in self._variables.items()}
        return (out, {k: state[k] for k in mutable if k in state}) if mutable else out

    def measured(self, count: Array) -> Metrics:
        """The variables as one mean of weight ``count``, under :data:`VARIABLES`; nothing where the model has none."""
        if not self._variables:
            return {}
        total = jax.tree.map(lambda x: x * jnp.asarray(count, x.dtype), self._variables)
        return {VARIABLES: Mean(total, count)}


def split(batch: Batch, parts: int) -> dict[str, jax.Array]:
    """[B, ...] -> [parts, B/parts, ...]; part i takes rows i, i + parts, ...

    The stride leaves each device with the rows it has, and the parts the same on any number of devices.
    """

    def one(x: Array) -> jax.Array:
        x = jnp.swapaxes(jnp.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:])), 0, 1)
        return sharding.constrain(x, None, "batch", *[None] * (x.ndim - 2))

    return jax.tree.map(one, dict(batch))


def fold(rngs: Rngs, i: int | jax.Array) -> dict[str, PRNGKey]:
    """The streams of slice ``i``."""
    return {k: jax.random.fold_in(v, i) for k, v in rngs.items()}


def summed(f: Callable[..., Any], parts: Any) -> Any:
    """The sum, leaf by leaf, of ``f(*part)`` over the leading axis of ``parts``, one after the other."""
    shapes = jax.eval_shape(f, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, f(*part)), None), zeros, parts)[0]


class PerExample(Objective):
    """Objectives whose loss is the mean of one number per valid example (``batch["mask"]``)."""

    @abc.abstractmethod
    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Losses float32[B] and further metrics."""

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        losses, metrics = self.per_example(Recorder(apply), params, batch, rngs, train=train)
        loss = Mean.of(losses, batch["mask"])
        return loss.value(), {"loss": loss, **metrics}

    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int = 1
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        def total(params: Params, part: Batch, rngs: Rngs) -> tuple[jax.Array, Metrics]:
            model = Recorder(apply)
            losses, metrics = self.per_example(model, params, part, rngs, train=True)
            loss = Mean.of(losses, part["mask"])
            return jnp.asarray(loss.total), {"loss": loss, **metrics, **model.measured(loss.count)}

        grad = jax.grad(total, has_aux=True)
        if micro == 1:
            grads, metrics = grad(params, batch, fold(rngs, 0))
        else:
            parts = jnp.arange(micro), split(batch, micro)
            grads, metrics = summed(lambda i, rows: grad(params, rows, fold(rngs, i)), parts)
        count = jnp.maximum(metrics["loss"].count, 1)  # nothing valid: a zero gradient, not 0/0
        return (metrics["loss"].value(), metrics), jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
