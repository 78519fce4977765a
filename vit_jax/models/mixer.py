"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Depth, Pixels, Size
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.embed import PatchEmbed
from vit_jax.layers.linear import Dense, LinearSpec, Spec
from vit_jax.layers.mlp import MLP
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Stack, common
from vit_jax.models.base import Features, ImageModel


class MixerBlock(ResidualBlock):
    """An MLP across the tokens of each channel, then the block's MLP across the channels of each token.

    Attributes:
      token_dim: hidden size of the MLP across tokens.
      token_linear: linear map (dense, or a structured one) of the MLP across tokens.
    """

    token_dim: int = 0
    token_linear: LinearSpec = Dense()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``; arguments as of :class:`vit_jax.layers.block.Block`."""
        keys = [None] * 2 if key is None else list(jax.random.split(key, 2))

        def mix(y: jax.Array, key: jax.Array | None) -> jax.Array:
            mlp = MLP(self.token_dim, self.token_linear, self.activation, self.dropout, self.dtype, name="tokens")
            return jnp.swapaxes(mlp(jnp.swapaxes(y, 1, 2), key=key), 1, 2)

        x = self.branch(x, "tokens", mix, keys[0], drop_path)
        return self.branch(x, "mlp", self.mlp, keys[1], drop_path)


class Mixer(Stack, ImageModel):
    """MLP-Mixer. Works at the image size it was initialised for.

    Attributes:
      patch: side of a patch in pixels.
      width: channels D.
      token_dim: hidden size of the MLPs across tokens.
      token_linear: linear map (dense, or a structured one) of the MLPs across tokens.
    """

    patch: Pixels = 16
    width: Size = 512
    depth: Depth = 8
    token_dim: Size = 256
    mlp_dim: Size = 2048
    token_linear: Spec = Dense()

    def encode(self, image: jax.Array, train: bool) -> Features:
        grid = PatchEmbed(self.patch, self.width, self.dtype, name="patch")(image)
        x = grid.reshape(grid.shape[0], -1, self.width)
        tokens = self.stack(functools.partial(MixerBlock, **common(self, MixerBlock)), name="encoder")(x, train=train)
        return Features(tokens, average(tokens))
