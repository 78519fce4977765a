"""A masked autoencoder (He et al. 2022, arXiv:2111.06377): a ViT that sees some patches, a decoder that draws all."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.block import Block, Encoder
from vit_jax.layers.linear import Linear, logical
from vit_jax.models import Features, ImageModel, ViT


class MAE(ImageModel):
    """``vit`` is the encoder that is kept; :meth:`reconstruct` is what training asks for.

    Attributes:
      vit: the encoder, without cls token and head.
      dim: width of the decoder.
      ratio: share of the patches that the encoder does not see.
    """

    vit: ViT = ViT(pool="gap", num_classes=0)
    dim: int = 16
    ratio: float = 0.75
    ENCODER: ClassVar[str | None] = "vit"

    @property
    def dtype(self) -> str:
        return self.vit.dtype

    def encode(self, image: jax.Array, train: bool) -> Features:
        if self.is_initializing():
            self.reconstruct(image)
        return self.vit.features(image, train=train)

    @nn.compact
    def reconstruct(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Pixels float32 ``[B, N, P * P * 3]`` of all patches, and bool ``[B, N]``: those that were not seen."""
        tokens, grid = self.vit.embed(image, train)
        b, n, _ = tokens.shape
        kept = max(1, round(n * (1 - self.ratio)))
        order = jnp.argsort(jax.random.uniform(self.make_rng("mask"), (b, n)), axis=1)
        seen = jnp.take_along_axis(tokens, order[:, :kept, None], axis=1)
        x = Linear(self.dim, name="narrow")(self.vit.encode_tokens(seen, train, self.vit.coordinates(*grid)))
        token = self.param("mask_token", logical(nn.initializers.normal(0.02), (None, None, "embed")), (1, 1, self.dim))
        x = jnp.concatenate([x, jnp.broadcast_to(token, (b, n - kept, self.dim))], axis=1)
        x = jnp.take_along_axis(x, jnp.argsort(order, axis=1)[:, :, None], axis=1)  # each to its own place
        place = self.param("place", logical(nn.initializers.normal(0.02), (None, None, "embed")), (1, n, self.dim))
        x = Encoder(1, lambda **kw: Block(self.dim, heads=2, **kw), name="decoder")(x + place)
        pixels = Linear(self.vit.patch**2 * 3, name="pixels")(x).astype(jnp.float32)
        return pixels, jnp.argsort(order, axis=1) >= kept
