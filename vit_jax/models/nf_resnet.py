"""Normalizer-free ResNets (Brock et al. 2021, arXiv:2101.08692): residual networks without any norm."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.checks import Depth, NonNegative, Size
from vit_jax.layers.conv import Conv, Grid
from vit_jax.layers.linear import DType, logical
from vit_jax.layers.mlp import activate
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Layered, common
from vit_jax.layers.stochastic import drop_path as dropped
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.stages import drop_path_rates, each_stage

Rectifier = Literal["relu", "gelu", "silu"]
GAMMAS = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571, "silu": 1.7881293296813965}
"""What the activation of a unit Gaussian is multiplied by for unit variance (section 4.1; the published code's)."""
EPSILON = 1e-5
"""Added to the variance of a kernel."""
NARROWER = 4
"""A block's channels to those of the convolutions in its middle."""


class ScaledConv(Conv):
    """A convolution of scaled weight standardisation: of what activations give, unit variance comes out (section 4.2).

    The kernel of each output channel is ``gamma * scale * (W - mean) / sqrt((variance + epsilon) * fan_in)``; where a
    paper multiplies activations by gamma, kernels are multiplied here, as in timm.

    Attributes:
      gamma: of the activation, see :data:`GAMMAS`.
      scale_init: initial value of the parameter ``scale [features]``, the paper's gain.
    """

    gamma: float = 1.0
    scale_init: float = 1.0

    @nn.compact
    def weights(self, kernel: jax.Array) -> jax.Array:
        init = logical(nn.initializers.constant(self.scale_init), self.axes[1:])
        scale = self.param("scale", init, (self.features,))
        fan_in = kernel[..., 0].size
        mean, variance = (f(kernel, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        factor = jax.lax.rsqrt(variance + EPSILON) * scale.reshape(1, 1, 1, -1) * (self.gamma * fan_in**-0.5)
        return (kernel - mean) * factor


class NFBlock(nn.Module):
    """``shortcut(x) + alpha * branch(activation(x) / sigma)``: convolutions of 1x1, 3x3 and 1x1 (section 4.2).

    The branch starts as zero. The shortcut is ``x``, or where the block has other channels or a stride a convolution of
    what the branch takes, with a stride of its mean over 2x2 (as timm's; the variance is as expected where neighbours
    are alike).

    Attributes:
      width: channels of the output.
      grid: rows and columns of the tokens.
      sigma: standard deviation that is expected of ``x``.
      stride: 2 for half of the rows and columns, rounded up.
      alpha: of the branch.
      skip_gain: whether the branch starts as zero by a scalar, the paper's SkipInit; else by the last scale.
      activation: a name in :data:`GAMMAS`.
      dtype: compute type; parameters are float32.
    """

    width: int
    grid: Grid
    sigma: float
    stride: int = 1
    alpha: float = 0.2
    skip_gain: bool = False
    activation: Rectifier = "relu"
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, C] -> [B, N', width]``; ``key`` and ``drop_path`` as of :class:`vit_jax.layers.block.Block`."""
        conv = functools.partial(ScaledConv, dtype=self.dtype, gamma=GAMMAS[self.activation])
        act, inner = functools.partial(activate, self.activation), self.width // NARROWER
        x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        y = act(x) * (1 / self.sigma)
        shortcut = x
        if self.stride > 1 or x.shape[-1] != self.width:
            step = (self.stride,) * 2
            mean = nn.avg_pool(y, step, step, "SAME", count_include_pad=False) if self.stride > 1 else y
            shortcut = conv(self.width, 1, axes=("embed", "mlp"), name="conv_shortcut")(mean)
        y = conv(inner, 1, axes=("embed", "mlp"), name="conv_1")(y)
        y = conv(inner, 3, self.stride, axes=("embed", "mlp"), name="conv_2")(act(y))
        start = 1.0 if self.skip_gain else 0.0
        y = conv(self.width, 1, axes=("mlp", "embed"), scale_init=start, name="conv_3")(act(y))
        if self.skip_gain:
            y *= self.param("scale_skip", logical(nn.initializers.zeros, ()), ()).astype(y.dtype)
        if drop_path is not None:
            y = dropped(y, drop_path, key)
        total = (shortcut.astype(jnp.float32) + self.alpha * y.astype(jnp.float32)).astype(x.dtype)
        return sharding.constrain(total.reshape(x.shape[0], -1, self.width), "batch", None, None)


class NFResNet(Layered, ImageModel):
    """NF-ResNet: stages of blocks of convolutions without norms, the average of the last activation.

    Every stage but the first halves rows and columns, rounded up: images of any size will do. Tokens are the last
    stage's grid after the activation.

    Attributes:
      depths: blocks of each stage.
      widths: channels of each stage.
      stem: the first convolution: 7x7 with a stride of 2 and a maximum over 3x3 with a stride of 2; or 3x3, for small
        images.
      stem_width: its channels.
      activation: nonlinearity; it must be one whose effect on the variance is known.
      alpha: what residual branches are multiplied by; the variance grows by its square with every block.
      skip_gain: whether residual branches start as zero by a scalar of their own, as in the paper, or by the scale of
        their last convolution, as in timm's models.
    """

    depths: tuple[Depth, ...] = (3, 4, 6, 3)
    widths: tuple[Size, ...] = (256, 512, 1024, 2048)
    stem: Literal["7x7_pool", "3x3"] = "7x7_pool"
    stem_width: Size = 64
    activation: Rectifier = "relu"
    alpha: NonNegative = 0.2
    skip_gain: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        each_stage(self, "depths", "widths")

    @property
    def width(self) -> int:
        """Channels of the tokens and the pooled features."""
        return self.widths[-1]

    def encode(self, image: jax.Array, train: bool) -> Features:
        large = self.stem == "7x7_pool"
        conv = functools.partial(ScaledConv, dtype=self.dtype, gamma=GAMMAS[self.activation])
        x = conv(self.stem_width, 7 if large else 3, 2 if large else 1, name="stem")(image)
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        grid: Grid = (x.shape[1], x.shape[2])
        tokens, sigma = x.reshape(x.shape[0], -1, x.shape[-1]), 1.0
        for i, depth in enumerate(self.depths):
            blocks: list[Any] = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                shared = common(self, NFBlock)
                blocks.append(functools.partial(NFBlock, self.widths[i], grid, sigma, stride, **shared))
                grid = (-(-grid[0] // stride), -(-grid[1] // stride))
                # A stage's first block has another shortcut, of unit variance whatever came in.
                sigma = ((sigma**2 if j else 1.0) + self.alpha**2) ** 0.5
            rates = drop_path_rates(self.drop_path, self.depths, i)
            stage = self.stack(tuple(blocks), depth=depth, **rates, final_norm=False, name=f"stage_{i}")
            tokens = stage(tokens, train=train)
        tokens = activate(self.activation, tokens)
        return Features(tokens, average(tokens))
