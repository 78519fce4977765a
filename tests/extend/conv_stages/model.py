"""A convolutional backbone of four stages with batch statistics."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import Features, ImageModel


class ConvStages(ImageModel):
    """Four stages, each a strided convolution, a batch norm and a residual convolution.

    Attributes:
      widths: channels of the stages.
      dtype: compute type; parameters are float32.
    """

    widths: tuple[int, ...] = (8, 16, 24, 32)
    dtype: str = "float32"

    def encode(self, image: jax.Array, train: bool) -> Features:
        x = image.astype(self.dtype)
        for i, width in enumerate(self.widths):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.8, dtype=self.dtype, name=f"stage_{i}_norm")
            stride = 2 if i else 1
            x = norm(nn.Conv(width, (3, 3), (stride, stride), dtype=self.dtype, name=f"stage_{i}_down")(x))
            x = x + nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"stage_{i}_conv")(x))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return Features(tokens, jnp.mean(tokens.astype(jnp.float32), axis=1))
