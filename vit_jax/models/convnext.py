"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.conv import DepthwiseConv, Grid, on_grid
from vit_jax.layers.norm import LayerNorm
from vit_jax.models.stages import Stages

KERNEL = 7
"""Side of the depthwise convolutions."""


class ConvNeXtBlock(ResidualBlock):
    """``x + drop_path(layer_scale(mlp(norm(conv(x)))))``: the norm follows the convolution (section 2.6, figure 4)."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, grid: Grid, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``, ``grid`` row by row; others as of :class:`vit_jax.layers.block.Block`."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        y = on_grid(DepthwiseConv(KERNEL, self.dtype, name="conv"), x, grid)
        y = self.mlp(LayerNorm(self.dtype, self.norm_epsilon, name="norm_mlp")(y), keys[0])
        return self.add(x, "mlp", y, keys[1:], drop_path)


class ConvNeXt(Stages):
    """ConvNeXt: depthwise 7x7 convolutions and MLPs in stages, no attention.

    Tokens are the last stage's grid, which has been normalised only with ``final_norm`` (timm's ``head_norm_first``).
    """

    def block(self, stage: int) -> Callable[..., nn.Module]:
        return ConvNeXtBlock
