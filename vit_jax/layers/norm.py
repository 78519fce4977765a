"""Layer normalisation, and vectors of unit length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.kernels.layer_norm import layer_norm
from vit_jax.layers.linear import DType, logical

EPSILON = 1e-6
LENGTH = 1e-12
"""Least length that a vector is divided by, as in PyTorch's ``normalize``."""


class LayerNorm(nn.Module):
    """Normalises the last axis (Ba et al. 2016, arXiv:1607.06450), computed in float32, returned in ``dtype``.

    Attributes:
      dtype: type of the result; parameters ``scale`` and ``bias`` ``[D]`` are float32.
      epsilon: added to the variance; 1e-6 as in the JAX and timm ViTs, 1e-5 in open_clip.
    """

    dtype: DType = "float32"
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, *, beside: Callable[[jax.Array], None] | None = None) -> jax.Array:
        """``[..., D] -> [..., D]``; ``beside`` is called with the ``x`` that goes on beside: one gradient adds both."""
        width = x.shape[-1:]
        scale = self.param("scale", logical(nn.initializers.ones, ("embed",)), width)
        bias = self.param("bias", logical(nn.initializers.zeros, ("embed",)), width)
        x, y = layer_norm(x, scale, bias, self.epsilon)
        if beside is not None:
            beside(x)
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x ** 2) + epsilon) * scale`` over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    Attributes:
      dtype: type of the result, computed in float32; the parameter ``scale`` ``[D]`` is float32.
      epsilon: added to the mean square.
    """

    dtype: DType = "float32"
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, *, beside: Callable[[jax.Array], None] | None = None) -> jax.Array:
        """As :class:`LayerNorm`; ``beside`` gets ``x`` itself."""
        scale = self.param("scale", logical(nn.initializers.ones, ("embed",)), x.shape[-1:])
        if beside is not None:
            beside(x)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        scale = jax.lax.broadcast_in_dim(scale.astype(jnp.float32), x.shape, (x.ndim - 1,))
        return (wide * inverse * scale).astype(self.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
Norm = Literal["layer", "rms"]
"""A name in :data:`NORMS`."""


def unit(x: jax.Array) -> jax.Array:
    """``x [..., E]`` divided by its length; zero stays zero, with gradient zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, LENGTH**2))
