"""What a ViT looks at: attention maps and their rollout."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

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
    found = flatten_dict(state.get("intermediates", {}))
    maps = {path: v[0] for path, v in found.items() if "encoder" in path and path[-1] == "attention"}
    if not maps:
        raise UserError(f"{type(model).__name__} has no attention to show; take a ViT.")
    order = sorted(maps, key=lambda path: int(next(p for p in path if p.startswith("block_")).removeprefix("block_")))
    return jnp.stack([maps[path] for path in order]).astype(jnp.float32)


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


def heatmap(weights: Array, grid: tuple[int, int], prefix: int = 0) -> jax.Array:
    """Token weights as a picture: float[B,N] -> float32[B,h,w], the ``prefix`` tokens left out, the largest value 1."""
    picture = jnp.asarray(weights, jnp.float32)[:, prefix : prefix + grid[0] * grid[1]].reshape(-1, *grid)
    return picture / jnp.max(picture, axis=(1, 2), keepdims=True)
