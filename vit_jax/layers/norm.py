"""Layer normalisation, and vectors of unit length."""

from __future__ import annotations

from collections.abc import Callable

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


def unit(x: jax.Array) -> jax.Array:
    """``x [..., E]`` divided by its length; zero stays zero, with gradient zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, LENGTH**2))
