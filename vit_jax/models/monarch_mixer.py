"""Monarch Mixer for images (M2-ViT): long convolutions instead of attention (Fu et al. 2023, arXiv:2310.12109)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Pixels, Range, Size
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.embed import PatchEmbed
from vit_jax.layers.linear import Dense, DType, LinearSpec, Spec, logical
from vit_jax.layers.long_conv import Filter, long_conv
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Stack, common
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.roles import Kind


class SequenceMixer(nn.Module):
    """``out(gate * (filter * (gate' * value) + skip (gate' * value)))``, then a second filter of the input beside it.

    The gates and the value come from one projection ``qkv`` and a convolution over ``short`` tokens, which, as in the
    published code, looks back only, although the long filters look both ways.

    Attributes:
      short: length in tokens of the short convolution before the long one.
      filter_features: features of a position from which the long filters are computed; odd.
      filter_hidden: width of the MLP that computes the long filters.
      residual: whether a second long filter of the input is added (the language models' ``residual_long_conv``).
      qkv_linear: linear map (dense, or a structured one) of the projection to gates and value.
      out_linear: linear map (dense, or a structured one) of the output projection.
      dtype: compute type; the long convolution is float32.
      implementation: how the long convolution is computed, as :func:`vit_jax.layers.long_conv.long_conv` takes it.
    """

    short: int = 3
    filter_features: int = 33
    filter_hidden: int = 128
    residual: bool = True
    qkv_linear: LinearSpec = Dense()
    out_linear: LinearSpec = Dense()
    dtype: DType = "float32"
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``."""
        d = x.shape[-1]
        parts = self.qkv_linear(3 * d, name="qkv", axes=("embed", "mlp"), dtype=self.dtype)(x)
        first, second, value = jnp.split(self._short(parts), 3, axis=-1)
        y = second * self._long(value * first, "")
        if self.residual:
            y += self._long(x.astype(self.dtype), "residual_")
        return self.out_linear(d, name="out", axes=("mlp", "embed"), dtype=self.dtype)(y)

    def _short(self, x: jax.Array) -> jax.Array:
        """Each channel's sum over the last ``short`` tokens, the newest weight last."""
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=())
        weights = self.param("short", logical(init, (None, "mlp")), (self.short, x.shape[-1])).astype(x.dtype)
        n, padded = x.shape[1], jnp.pad(x, ((0, 0), (self.short - 1, 0), (0, 0)))
        return sum((padded[:, i : i + n] * weights[i].reshape(1, 1, -1) for i in range(self.short)), jnp.zeros_like(x))

    def _long(self, x: jax.Array, prefix: str) -> jax.Array:
        """The filters ``forward`` and ``backward`` and the weight ``skip`` of the token itself."""
        n, d = x.shape[1:]
        make = functools.partial(Filter, d, self.filter_features, self.filter_hidden)
        y = long_conv(
            x,
            make(name=f"{prefix}forward")(n),
            make(name=f"{prefix}backward")(n),
            implementation=self.implementation,
        )
        skip = self.param(f"{prefix}skip", logical(nn.initializers.normal(1.0), ("embed",)), (d,)).astype(x.dtype)
        return y + x * skip.reshape(1, 1, -1)


class MonarchMixerBlock(ResidualBlock):
    """Long convolutions across the tokens, then the block's MLP across the channels.

    Attributes:
      mixer: fields of :class:`SequenceMixer`.
    """

    mixer: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``; arguments as of :class:`vit_jax.layers.block.Block`."""
        keys = [None] * 2 if key is None else list(jax.random.split(key, 2))
        x = self.branch(x, "mixer", lambda y, _: self.mixer(name="mixer")(y), keys[0], drop_path)
        return self.branch(x, "mlp", self.mlp, keys[1], drop_path)


class MonarchMixer(Stack, ImageModel):
    """M2-ViT: patches without positions or cls, blocks of long convolutions, the average of the tokens.

    Parameters do not depend on the image's size. Of ``mlp_linear`` the published code has ``block_diagonal(4)``, the
    paper Monarch matrices.

    Attributes:
      patch: side of a patch in pixels.
      width: channels D.
      short: length in tokens of the short convolution before the long one.
      filter_features: features of a position from which the long filters are computed; odd.
      filter_hidden: width of the MLP that computes the long filters.
      residual: whether a second long filter of the input is added (the language models' ``residual_long_conv``).
      qkv_linear: linear map of the sequence mixers' input projections; dense in the published code.
      out_linear: linear map of the sequence mixers' output projections; dense in the published code.
      long_conv: implementation of :func:`vit_jax.layers.long_conv.long_conv`, None picks.
    """

    patch: Pixels = 16
    width: Size = 192
    short: Annotated[int, Range(1, 1024)] = 3
    filter_features: Annotated[int, Range(3, 1023)] = 33
    filter_hidden: Size = 128
    residual: bool = True
    qkv_linear: Spec = Dense()
    out_linear: Spec = Dense()
    long_conv: str | None = None

    KINDS: ClassVar[Mapping[str, Kind]] = {
        **ImageModel.KINDS,
        **dict.fromkeys(("short", "skip", "forward", "backward"), "filter"),
        **dict.fromkeys(("residual_skip", "residual_forward", "residual_backward"), "filter"),
    }
    """Filters are not decayed, as in the published recipes."""

    def encode(self, image: jax.Array, train: bool) -> Features:
        grid = PatchEmbed(self.patch, self.width, self.dtype, name="patch")(image)
        x = grid.reshape(grid.shape[0], -1, self.width)
        mixer = functools.partial(SequenceMixer, implementation=self.long_conv, **common(self, SequenceMixer))
        tokens = self.stack(functools.partial(MonarchMixerBlock, mixer=mixer), name="encoder")(x, train=train)
        return Features(tokens, average(tokens))
