"""A plain ViT of Flax's own layers: the baseline of ``vit_jax bench`` and the independent reference of the tests."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import models


class PlainViT(nn.Module):
    """ViT with a cls token, from ``nn.Dense``, ``nn.LayerNorm`` and ``nn.MultiHeadDotProductAttention``.

    Attributes:
      num_classes: outputs of the head.
      patch: side of a patch, in pixels.
      width: channels D of a token.
      depth: number of blocks.
      heads: number of attention heads; divides ``width``.
      mlp_dim: hidden size of the MLPs.
      dtype: compute type; parameters are float32.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, C]`` -> logits ``[B, num_classes]``."""
        dtype = jnp.dtype(self.dtype)
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, padding="VALID", dtype=dtype, name="patch")(image)
        x = x.reshape(x.shape[0], -1, self.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width)).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(dtype)
        init = nn.initializers.xavier_uniform()
        for i in range(self.depth):
            y = nn.LayerNorm(dtype=dtype, name=f"norm_attention_{i}")(x)
            y = nn.MultiHeadDotProductAttention(self.heads, dtype=dtype, kernel_init=init, name=f"attention_{i}")(y)
            x = x + y
            y = nn.LayerNorm(dtype=dtype, name=f"norm_mlp_{i}")(x)
            y = nn.gelu(nn.Dense(self.mlp_dim, dtype=dtype, kernel_init=init, name=f"mlp_in_{i}")(y), approximate=False)
            x = x + nn.Dense(self.width, dtype=dtype, kernel_init=init, name=f"mlp_out_{i}")(y)
        x = nn.LayerNorm(dtype=dtype, name="norm")(x)[:, 0]
        return nn.Dense(self.num_classes, dtype=dtype, kernel_init=nn.initializers.zeros, name="head")(x)


def twin(model: nn.Module) -> PlainViT | None:
    """The plain ViT that computes what ``model`` does; None for a model that has more to say than its sizes."""
    names = {f.name for f in dataclasses.fields(PlainViT)} - {"parent", "name"}
    sizes = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name in names}
    return PlainViT(**sizes) if model == models.create("vit", **sizes) else None
