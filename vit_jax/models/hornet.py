"""HorNet (Rao et al. 2022, arXiv:2207.14284): recursive gated convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Depth, Pixels, Range, Size
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.conv import DepthwiseConv, Grid, on_grid
from vit_jax.layers.linear import Dense, DType, Linear, LinearSpec, Spec, logical
from vit_jax.layers.norm import EPSILON, LayerNorm
from vit_jax.layers.stack import common
from vit_jax.models.base import ImageModel
from vit_jax.models.roles import Kind
from vit_jax.models.stages import Stages, each_stage
from vit_jax.types import UserError

KERNEL, LOCAL_KERNEL = 7, 3
"""Side of the depthwise convolutions, and of those beside global filters."""
SHARE = 1 / 3
"""What the convolution's output is multiplied by (the published code's ``s``)."""


class GlobalLocalFilter(nn.Module):
    """Of half of the channels a convolution of 3x3, of the others a filter as large as the grid, in turn; norms around.

    The filters are a product in the frequencies of a two-dimensional Fourier transform (GFNet, Rao et al. 2021,
    arXiv:2107.00645), in float32 whatever ``dtype`` is: circular convolutions, for which a shift is a shift.

    Attributes:
      stored: rows and columns of the grid that the filters are stored for; for another they are resized bilinearly,
        corner to corner, as in the published code.
      dtype: compute type of what is no filter.
      norm_epsilon: added to the variance in the norms.
    """

    stored: Grid
    dtype: DType = "float32"
    norm_epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, D] -> [B, H, W, D]``; the parameter ``filter`` is ``[H', W' / 2 + 1, D / 2, 2]``."""
        x = LayerNorm(self.dtype, self.norm_epsilon, name="norm_pre")(x)
        near, far = jnp.split(x, 2, axis=-1)
        near = DepthwiseConv(LOCAL_KERNEL, self.dtype, use_bias=False, name="conv")(near)
        init = logical(nn.initializers.truncated_normal(0.02), (None, None, "embed", None))
        rows, columns = self.stored
        stored = self.param("filter", init, (rows, columns // 2 + 1, far.shape[-1], 2))
        both = jnp.stack([near, filtered(far, stored)], axis=-1).reshape(x.shape)
        return LayerNorm(self.dtype, self.norm_epsilon, name="norm_post")(both)


def filtered(x: jax.Array, stored: jax.Array) -> jax.Array:
    """Every channel of ``x [B, H, W, D]`` times its filter over frequencies, float32 ``[H', F', D, 2]``; as ``x``."""
    size = x.shape[1:3]
    for axis, side in enumerate((size[0], size[1] // 2 + 1)):
        if side != stored.shape[axis]:
            resized = jnp.tensordot(_between_corners(stored.shape[axis], side), stored, (1, axis))
            stored = jnp.moveaxis(resized, 0, axis)
    waves = jnp.fft.rfft2(x.astype(jnp.float32), axes=(1, 2))
    waves *= jax.lax.complex(stored[..., 0], stored[..., 1])[None]
    return jnp.fft.irfft2(waves, s=size, axes=(1, 2)).astype(x.dtype)


def _between_corners(there: int, here: int) -> np.ndarray:
    """The linear map float32 ``[here, there]`` that resizes bilinearly, first on first and last on last."""
    at = np.linspace(0, there - 1, here)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(there))).astype(np.float32)


class GnConv(nn.Module):
    """Recursive gated convolution of order n (section 3.1, equations 3 and 4).

    ``x_0 = p * q_0``, then ``x_{j+1} = up_j(x_j) * q_{j+1}``, where ``p`` and ``q`` are one projection of the input,
    ``q`` through a convolution, and channels double from D / 2^(n-1) to D.

    Attributes:
      order: n.
      conv: makes the convolution ``[B, H, W, C] -> [B, H, W, C]``.
      qkv_linear: linear map (dense, or a structured one) of the projection to ``p`` and ``q``.
      out_linear: linear map (dense, or a structured one) of the output projection.
      dtype: compute type; parameters are float32.
    """

    order: int
    conv: Callable[..., nn.Module]
    qkv_linear: LinearSpec = Dense()
    out_linear: LinearSpec = Dense()
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``."""
        d = x.shape[-1]
        widths = [d // 2**j for j in reversed(range(self.order))]
        parts = self.qkv_linear(2 * d, name="qkv", axes=("embed", "mlp"), dtype=self.dtype)(x)
        p, q = jnp.split(parts, [widths[0]], axis=-1)
        q = on_grid(self.conv(name="conv"), q, grid) * SHARE
        first, *others = jnp.split(q, np.cumsum(widths)[:-1], axis=-1)
        x = p * first
        for j, other in enumerate(others):
            x = Linear(widths[j + 1], dtype=self.dtype, name=f"up_{j}")(x) * other
        return self.out_linear(d, name="out", axes=("mlp", "embed"), dtype=self.dtype)(x)


class HorNetBlock(ResidualBlock):
    """A recursive gated convolution across tokens, then the block's MLP across the channels.

    Attributes:
      mixer: fields of :class:`GnConv`.
    """

    mixer: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, grid: Grid, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``, ``grid`` row by row; others as of :class:`vit_jax.layers.block.Block`."""
        keys = [None] * 2 if key is None else list(jax.random.split(key, 2))
        x = self.branch(x, "mixer", lambda y, _: self.mixer(name="mixer")(y, grid), keys[0], drop_path)
        return self.branch(x, "mlp", self.mlp, keys[1], drop_path)


class HorNet(Stages):
    """HorNet: recursive gated convolutions and MLPs in stages.

    Attributes:
      orders: n of each stage's recursive gated convolutions; 2^(n-1) divides the stage's channels.
      global_filters: whether the convolutions of the last two stages are global filters beside 3x3 convolutions (the
        published ``gf`` models) instead of 7x7 convolutions.
      filter_size: side in pixels of the images that global filters are stored for.
      qkv_linear: linear map of the recursive gated convolutions' input projections; dense in the published code.
      out_linear: linear map of their output projections; dense in the published code.
    """

    depths: tuple[Depth, ...] = (2, 3, 18, 2)
    widths: tuple[Size, ...] = (64, 128, 256, 512)
    orders: tuple[Annotated[int, Range(1, 8)], ...] = (2, 3, 4, 5)
    global_filters: bool = False
    filter_size: Pixels = 224
    qkv_linear: Spec = Dense()
    out_linear: Spec = Dense()

    KINDS: ClassVar[Mapping[str, Kind]] = {**ImageModel.KINDS, "filter": "filter"}
    """Global filters are not decayed, as those of Monarch Mixer; the published recipe does decay them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        each_stage(self, "depths", "orders")
        for width, order in zip(self.widths, self.orders, strict=True):
            unit = 2 ** (order - 1) * (1 + self.global_filters)  # global filters take half of the channels
            if width % unit:
                raise UserError(
                    f"a stage of {width} channels has no recursive gated convolution of order {order}: {unit} does not "
                    f"divide them; use {max(width // unit, 1) * unit} for example."
                )
        if self.global_filters:
            self.check_side(self.filter_size, self.filter_size, "filter_size")

    def block(self, stage: int) -> Callable[..., nn.Module]:
        conv: Callable[..., nn.Module] = functools.partial(DepthwiseConv, KERNEL, self.dtype)
        if self.global_filters and stage >= len(self.depths) - 2:
            side = self.filter_size // (self.patch * 2**stage)
            conv = functools.partial(GlobalLocalFilter, (side, side), self.dtype, self.norm_epsilon)
        mixer = functools.partial(GnConv, self.orders[stage], conv, **common(self, GnConv))
        return functools.partial(HorNetBlock, mixer=mixer)
