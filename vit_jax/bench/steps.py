"""The steps that ``vit_jax bench`` times, compiles and takes apart: forward, and a train step with AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_jax import models, sharding
from vit_jax.losses import softmax_cross_entropy
from vit_jax.train.step import barriers
from vit_jax.types import UserError

Kind = Literal["forward", "train"]
AdamW = optax.adamw(1e-4, weight_decay=0.1)


def classifier(kind: str, name: str, **fields: Any) -> Any:
    """The model ``name`` with ``fields``, for ``bench KIND``.

    Raises:
      UserError: it does not classify images.
    """
    if not isinstance(models.create(name), models.ImageModel):
        raise UserError(f"bench {kind} takes models of images, and {name!r} is none; take vit_b16 for instance.")
    return models.create(name, **fields)


def inputs(model: Any, batch: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Random images float32[B,S,S,3] and labels int32[B]."""
    return jax.random.uniform(jax.random.key(0), (batch, size, size, 3)), jnp.arange(batch) % model.num_classes


def initial(kind: Kind, model: Any, images: jax.Array) -> Any:
    """What the step goes on from: the model's variables, in training with the optimizer's state."""
    variables = nn.unbox(model.init(jax.random.key(1), images))
    return variables if kind == "forward" else (variables, AdamW.init(variables["params"]))


def step(kind: Kind, model: Any) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """``(state, images, labels)`` -> logits or, in training, the next state and the loss.

    Parameters are float32 in both, as in training and evaluation; running statistics of norms stay as they are.
    """

    def forward(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return model.apply(variables, images)

    def loss(params: Any, others: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return softmax_cross_entropy(forward({**others, "params": params}, images, labels), labels).mean()

    def train(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables, opt = state
        params = variables["params"]
        value, grads = jax.value_and_grad(loss)(params, variables, images, labels)
        updates, opt = AdamW.update(grads, opt, params)
        return ({**variables, "params": optax.apply_updates(params, updates)}, opt), value

    return forward if kind == "forward" else train


def program(kind: Kind, model: Any) -> Any:
    """:func:`step` under ``jax.jit``; in training the state is donated."""
    donated: Any = () if kind == "forward" else 0
    return jax.jit(step(kind, model), donate_argnums=donated, compiler_options=barriers(sharding.platform(), model))


def candidate(kind: Kind, model: Any, batch: int, size: int) -> tuple[Callable[[], Any], int]:
    """What is timed, on random images: a call starts one step and returns its arrays; and how many parameters."""
    images, labels = inputs(model, batch, size)
    state = jax.jit(lambda: initial(kind, model, images))()
    params = jax.tree.leaves((state if kind == "forward" else state[0])["params"])
    return stepping(kind, program(kind, model), state, images, labels), sum(x.size for x in params)


def stepping(kind: Kind, run: Any, state: Any, images: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """A call starts the next step of ``run`` and returns its arrays."""
    if kind == "forward":
        return lambda: run(state, images, labels)

    def train() -> Any:
        nonlocal state
        state, value = run(state, images, labels)
        return value, jax.tree.leaves(state)[0]

    return train
