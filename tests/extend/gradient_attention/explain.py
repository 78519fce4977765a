"""Gradient times attention, block by block (Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.explain import by_block
from vit_jax.models import ModelFn


def attention_and_gradient(model, params, images, target):
    """The probabilities of every block ``[B, K, N, N]`` and the derivatives of the target's logit by them."""
    run = ModelFn(model)
    shapes = jax.eval_shape(lambda: run(params, images, mutable=["perturbations"])[1])["perturbations"]
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def logit(perturbations):
        variables = {"params": params, "perturbations": perturbations}
        out, state = model.apply(variables, images, mutable=["intermediates"])
        return jnp.sum(jnp.take_along_axis(out, target[:, None], 1)), state["intermediates"]

    gradients, found = jax.grad(logit, has_aux=True)(zero)
    return [probabilities for (probabilities,) in by_block(found)], by_block(gradients)


def relevance(model, params, images, target):
    """How much each token counts for the logit of ``target`` int32[B], as seen from the first: float32[B, N]."""
    total = None
    for attention, gradient in zip(*attention_and_gradient(model, params, images, target), strict=True):
        step = jnp.mean(jax.nn.relu(attention * gradient), axis=1)
        eye = jnp.eye(step.shape[-1])[None]
        total = jnp.broadcast_to(eye, step.shape) if total is None else total
        total = total + step @ total
    return total[:, 0]
