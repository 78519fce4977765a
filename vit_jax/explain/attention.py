"""Attention maps and their rollout."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.explain.base import by_block
from vit_jax.types import Array, Params, UserError


def attention_maps(model: nn.Module, params: Params, images: Array) -> jax.Array:
    """Attention probabilities of every block.

    Args:
      model: a model with self-attention blocks in ``encoder``.
      params: its parameters.
      images: float32[B,H,W,3], normalised as in training.

    Returns:
      float32[L,B,K,N,N]: layer, image, head, query token, key token; rows sum to 1.

    Raises:
      UserError: the model has no self-attention (a Mixer).
    """
    _, state = model.apply({"params": params}, images, mutable=["intermediates"])
    maps = by_block(state.get("intermediates", {}))
    if not maps:
        raise UserError(f"{type(model).__name__} has no attention to show; take a ViT.")
    return jnp.stack([probabilities for (probabilities,) in maps]).astype(jnp.float32)


def rollout(maps: Array) -> jax.Array:
    """How much of each input token reaches each output token (Abnar and Zuidema, arXiv:2005.00928, section 3).

    Heads are averaged, the residual path counts as identity: ``A = (mean + I) / 2``, multiplied from the first layer
    to the last.

    Args:
      maps: float[L,B,K,N,N] as :func:`attention_maps` returns them.

    Returns:
      float32[B,N,N]: row, output token; column, input token; rows sum to 1.
    """
    mixed = (jnp.mean(jnp.asarray(maps, jnp.float32), axis=2) + jnp.eye(maps.shape[-1])[None, None]) / 2
    total = mixed[0]
    for layer in mixed[1:]:
        total = jnp.einsum("bij,bjk->bik", layer, total)
    return total
