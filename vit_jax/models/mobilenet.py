"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import architectures, sharding
from vit_jax.architectures import eights
from vit_jax.checks import Share, Size
from vit_jax.layers.conv import Conv, DepthwiseConv, Grid, on_grid
from vit_jax.layers.linear import DType, Linear, logical
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Layered
from vit_jax.layers.stochastic import drop_path as dropped
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.roles import Part
from vit_jax.models.stages import drop_path_rates, each_stage

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": lambda x: x * jax.nn.relu6(x + 3) / 6,
}
Rectifier = Literal["relu", "relu6", "hard_swish"]
"""A name in :data:`ACTIVATIONS`."""
MOMENTUM = 0.9
"""What a step keeps of the running statistics."""
SQUEEZE = 4
"""Channels of a block's middle to those of its squeeze and excitation, which are rounded to eights."""
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
LARGE = architectures.MOBILENET["mobilenetv3_large_100"]


class BatchNorm(nn.Module):
    """Normalises channels (Ioffe and Szegedy 2015, arXiv:1502.03167), in float32, then ``activation`` if there is one.

    The collection ``batch_stats`` holds running ``mean`` and ``var`` ``[D]``, to which each batch's own contribute a
    tenth (its variance over n values, in PyTorch over n - 1).

    Attributes:
      epsilon: added to the variance.
      dtype: type of the result; parameters ``scale`` and ``bias`` ``[D]`` are float32.
      activation: a name in :data:`ACTIVATIONS`, None for none.
    """

    epsilon: float
    dtype: DType = "float32"
    activation: Rectifier | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, batch: bool) -> jax.Array:
        """``[B, ..., D]``, likewise; ``batch`` for the statistics of this batch, which those kept then follow."""
        width, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        wide, shape = x.astype(jnp.float32), (1,) * len(axes) + x.shape[-1:]
        scale = self.param("scale", logical(nn.initializers.ones, ("embed",)), width).reshape(shape)
        bias = self.param("bias", logical(nn.initializers.zeros, ("embed",)), width).reshape(shape)
        kept = [
            self.variable("batch_stats", name, make, width) for name, make in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        mean, var = (value.value.reshape(shape) for value in kept)
        if batch:
            mean = jnp.mean(wide, axes, keepdims=True)
            var = jnp.mean(jnp.square(wide - mean), axes, keepdims=True)
            for value, new in zip(kept, (mean, var), strict=True):
                value.value = MOMENTUM * value.value + (1 - MOMENTUM) * new.reshape(width)
        y = (wide - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return (y if self.activation is None else ACTIVATIONS[self.activation](y)).astype(self.dtype)


class SqueezeExcite(nn.Module):
    """Channels times a number from 0 to 1 each, a function of all averages (Hu et al. 2018, arXiv:1709.01507).

    Attributes:
      hidden: size of the hidden layer.
      dtype: compute type; parameters are float32.
    """

    hidden: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, D] -> [B, H, W, D]``."""
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        h = jax.nn.relu(Linear(self.hidden, ("mlp", None), dtype=self.dtype, name="reduce")(mean))
        gate = Linear(x.shape[-1], (None, "mlp"), dtype=self.dtype, name="expand")(h)
        return x * (jax.nn.relu6(gate + 3) / 6)


class InvertedResidual(nn.Module):
    """A map to more channels, a depthwise convolution, a map to fewer, each with a norm; plus ``x`` where that fits.

    Attributes:
      width: channels of the output.
      hidden: channels in the middle; without the first map where ``x`` has as many.
      grid: rows and columns of the tokens.
      kernel: side of the convolution.
      stride: its step.
      excite: whether squeeze and excitation follows it.
      activation: nonlinearity after the first map and the convolution.
      norm_epsilon: added to the variance in the norms.
      dtype: compute type; parameters are float32.
    """

    width: int
    hidden: int
    grid: Grid
    kernel: int = 3
    stride: int = 1
    excite: bool = False
    activation: Rectifier = "relu"
    norm_epsilon: float = 1e-5
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        batch: bool,
        key: jax.Array | None = None,
        drop_path: float | jax.Array | None = None,
    ) -> jax.Array:
        """``[B, N, C] -> [B, N', width]``.

        Args:
          x: tokens, row by row.
          batch: as of :class:`BatchNorm`.
          key: as ``drop_path`` of :class:`vit_jax.layers.block.Block`.
          drop_path: likewise.
        """
        norm = functools.partial(BatchNorm, self.norm_epsilon, self.dtype)
        linear = functools.partial(Linear, dtype=self.dtype, use_bias=False, kernel_init=HE)
        y = x
        if self.hidden != x.shape[-1]:
            y = linear(self.hidden, ("embed", "mlp"), name="expand")(y)
            y = norm(self.activation, name="norm_expand")(y, batch=batch)

        def middle(y: jax.Array) -> jax.Array:
            conv = DepthwiseConv(self.kernel, self.dtype, False, self.stride, HE, name="conv")
            y = norm(self.activation, name="norm_conv")(conv(y), batch=batch)
            return SqueezeExcite(eights(self.hidden / SQUEEZE), self.dtype, name="excite")(y) if self.excite else y

        y = linear(self.width, ("mlp", "embed"), name="project")(on_grid(middle, y, self.grid))
        y = norm(name="norm_project")(y, batch=batch)
        if y.shape == x.shape and self.stride == 1:
            if drop_path is not None:
                y = dropped(y, drop_path, key)
            y = (x.astype(jnp.float32) + y.astype(jnp.float32)).astype(x.dtype)
        return sharding.constrain(y, "batch", None, None)


class MobileNet(Layered, ImageModel):
    """MobileNetV2 or V3: stages of inverted residuals, the average of a last map, and in V3 one more map of that.

    Images of any size will do: every stride halves rows and columns, rounded up. Tokens are the grid after the last
    map. The norms' running statistics are variables of the model, no parameters: the state, checkpoints and conversions
    have them, and evaluation uses them.

    Attributes:
      stem_width: channels of the first convolution, of 3x3.
      stem_stride: its step; 1 for small images.
      widths: channels of each stage.
      hidden: channels in the middle of each block of each stage; one with as many as come in has no first map.
      kernels: side of each stage's depthwise convolutions.
      strides: step of each stage's first block.
      excite: whether each stage's blocks have squeeze and excitation.
      activations: nonlinearity of each stage.
      activation: that of the first convolution and of the maps after the stages.
      last_width: channels of the map after the stages, which a norm follows.
      head_width: size of the map of the average, with a bias; None for none.
      norm: whose mean and variance training normalises by: those of the "batch", as when training from scratch; or
        "frozen" ones, the running ones of the weights that it started from, as when fine-tuning on small batches.
      norm_epsilon: added to the variance in the norms.
    """

    stem_width: Size = LARGE["stem_width"]
    stem_stride: Literal[1, 2] = 2
    widths: tuple[Size, ...] = LARGE["widths"]
    hidden: tuple[tuple[Size, ...], ...] = LARGE["hidden"]
    kernels: tuple[Literal[3, 5, 7], ...] = LARGE["kernels"]
    strides: tuple[Literal[1, 2], ...] = LARGE["strides"]
    excite: tuple[bool, ...] = LARGE["excite"]
    activations: tuple[Rectifier, ...] = LARGE["activations"]
    activation: Rectifier = "hard_swish"
    last_width: Size = LARGE["last_width"]
    head_width: Size | None = LARGE["head_width"]
    norm: Literal["batch", "frozen"] = "batch"
    norm_epsilon: Share = 1e-5

    PARTS: ClassVar[Mapping[str, Part]] = {
        **ImageModel.PARTS, "norm_stem": "stem", "last": "head", "norm_last": "head",
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        each_stage(self, "widths", "hidden", "kernels", "strides", "excite", "activations")

    @property
    def width(self) -> int:
        """Channels of the pooled features."""
        return self.head_width or self.last_width

    def encode(self, image: jax.Array, train: bool) -> Features:
        batch = train and self.norm == "batch"
        norm = functools.partial(BatchNorm, self.norm_epsilon, self.dtype, self.activation)
        x = Conv(self.stem_width, 3, self.stem_stride, dtype=self.dtype, use_bias=False, name="stem")(image)
        x = norm(name="norm_stem")(x, batch=batch)
        grid: Grid = (x.shape[1], x.shape[2])
        tokens, depths = x.reshape(x.shape[0], -1, x.shape[-1]), [len(row) for row in self.hidden]
        for i, row in enumerate(self.hidden):
            blocks = []
            for j, hidden in enumerate(row):
                stride = 1 if j else self.strides[i]
                block = functools.partial(InvertedResidual, self.widths[i], hidden, grid, self.kernels[i], stride)
                how = (self.excite[i], self.activations[i], self.norm_epsilon, self.dtype)
                blocks.append(functools.partial(block, *how))
                grid = (-(-grid[0] // stride), -(-grid[1] // stride))
            rates = drop_path_rates(self.drop_path, depths, i)
            stage = self.stack(tuple(blocks), depth=depths[i], **rates, final_norm=False, name=f"stage_{i}")
            tokens = stage(tokens, train=train, batch=batch)
        tokens = Linear(self.last_width, dtype=self.dtype, use_bias=False, kernel_init=HE, name="last")(tokens)
        tokens = norm(name="norm_last")(tokens, batch=batch)
        pooled = average(tokens)
        if self.head_width is not None:
            pooled = Linear(self.head_width, dtype=self.dtype, kernel_init=HE, name="map")(pooled)
            pooled = ACTIVATIONS[self.activation](pooled)
        return Features(tokens, pooled)
