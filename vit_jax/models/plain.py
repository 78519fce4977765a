"""A plain ViT of Flax's own layers: the baseline of ``vit_jax bench`` and the independent reference of the tests."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


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

    num_classes: int = 1000
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    dtype: str = "float32"

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
