"""The ResNetV2 stems of the hybrid models (BiT, Kolesnikov et al. 2020, arXiv:1912.11370; as in AugReg)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.layers.linear import DType, logical

GROUPS = 32
Numerics = Literal["original", "timm"]


class Epsilons(NamedTuple):
    """Where a small number keeps the stem from dividing by zero.

    Attributes:
      deviation: variance of a kernel -> what the centred kernel is divided by.
      group_norm: added to the variance of a group.
    """

    deviation: Callable[[jax.Array], jax.Array]
    group_norm: float


NUMERICS: dict[str, Epsilons] = {
    "original": Epsilons(lambda variance: jnp.sqrt(variance) + 1e-5, 1e-6),
    "timm": Epsilons(lambda variance: jnp.sqrt(variance + 1e-8), 1e-5),
}
"""The original repository's, and timm's for the same weights."""


class StdConv(nn.Module):
    """Convolution without bias whose kernel is standardised per output channel (Qiao et al. 2019, arXiv:1903.10520).

    Operands are rounded to ``dtype`` and multiplied as float32: the CPU has no fast bfloat16 convolution, and the
    matrix units of TPUs round their operands themselves. So this is the accumulation rule, for the gradient too.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: step in both directions, in pixels.
      dtype: compute type; parameters are float32.
      numerics: a name in :data:`NUMERICS`.
    """

    features: int
    size: int
    stride: int = 1
    dtype: DType = "float32"
    numerics: Numerics = "original"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]``."""
        init = logical(nn.initializers.lecun_normal(), (None, None, None, "embed"))
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        mean, variance = (f(kernel, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        kernel = (kernel - mean) / config.lookup(NUMERICS, self.numerics, "stem numerics").deviation(variance)
        a, b = (v.astype(self.dtype).astype(jnp.float32) for v in (x, kernel))
        layout, strides = ("NHWC", "HWIO", "NHWC"), (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(a, b, strides, "SAME", dimension_numbers=layout)
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over :data:`GROUPS` groups of channels, computed in float32.

    Attributes:
      dtype: type of the result.
      scale_init: initial scale.
      epsilon: added to the variance.
    """

    dtype: DType = "float32"
    scale_init: float = 1.0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        b, _, _, c = x.shape
        ones = nn.initializers.constant(self.scale_init)
        scale = self.param("scale", logical(ones, ("embed",)), (c,))
        bias = self.param("bias", logical(nn.initializers.zeros, ("embed",)), (c,))
        wide = x.astype(jnp.float32).reshape(b, -1, GROUPS, c // GROUPS)
        centred = wide - jnp.mean(wide, axis=(1, 3), keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True) + self.epsilon)
        y = y.reshape(x.shape) * scale.reshape(1, 1, 1, c) + bias.reshape(1, 1, 1, c)
        return y.astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut, ``4 * features`` channels out; starts as the identity."""

    features: int
    stride: int = 1
    dtype: DType = "float32"
    numerics: Numerics = "original"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(y: jax.Array, name: str, features: int, size: int, stride: int = 1, scale: float = 1.0) -> jax.Array:
            y = StdConv(features, size, stride, self.dtype, self.numerics, name=f"conv_{name}")(y)
            return GroupNorm(self.dtype, scale, NUMERICS[self.numerics].group_norm, name=f"norm_{name}")(y)

        wide = 4 * self.features
        shortcut = x
        if x.shape[-1] != wide or self.stride != 1:
            shortcut = conv(x, "shortcut", wide, 1, self.stride)
        y = jax.nn.relu(conv(x, "1", self.features, 1))
        y = jax.nn.relu(conv(y, "2", self.features, 3, self.stride))
        return jax.nn.relu(shortcut + conv(y, "3", wide, 1, scale=0.0))


class ResNet(nn.Module):
    """Root (7x7 convolution and max-pool: side / 4), then stages; every stage but the first halves the side.

    Attributes:
      stages: bottlenecks per stage; () is the root alone.
      width: channels of the root.
      dtype: compute type; parameters are float32.
      numerics: a name in :data:`NUMERICS`.
    """

    stages: tuple[int, ...]
    width: int = 64
    dtype: DType = "float32"
    numerics: Numerics = "original"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, H / r, W / r, C']``, r = 4 for none or one stage, doubled by each further one."""
        epsilon = config.lookup(NUMERICS, self.numerics, "stem numerics").group_norm
        x = StdConv(self.width, 7, 2, self.dtype, self.numerics, name="conv_root")(image)
        x = jax.nn.relu(GroupNorm(self.dtype, epsilon=epsilon, name="norm_root")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, size in enumerate(self.stages):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                x = Bottleneck(self.width * 2**i, stride, self.dtype, self.numerics, name=f"stage_{i}_unit_{j}")(x)
        return x
