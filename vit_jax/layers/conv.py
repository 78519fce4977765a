"""Depthwise convolution: every channel has a filter of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, sharding
from vit_jax.kernels.products import differentiable
from vit_jax.layers.linear import DType, logical


class DepthwiseConv(nn.Module):
    """Each channel's weighted sum over a square around a place, zeros beyond the edge.

    Attributes:
      size: side K of the square; odd.
      dtype: compute type; parameters ``kernel [K, K, 1, D]`` and ``bias [D]`` are float32.
      use_bias: whether a bias is added.
    """

    size: int
    dtype: DType = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, D] -> [B, H, W, D]``."""
        init = logical(nn.initializers.truncated_normal(0.02), (None, None, None, "embed"))
        kernel = self.param("kernel", init, (self.size, self.size, 1, x.shape[-1]))
        y = depthwise(None, x.astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", logical(nn.initializers.zeros, ("embed",)), x.shape[-1:])
            y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def _depthwise(implementation: str | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _way(implementation).forward(x, kernel).astype(x.dtype)


def _gradient(implementation: str | None, x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    g = g.astype(x.dtype)
    back = _depthwise(implementation, g, kernel[::-1, ::-1])
    return back, _way(implementation).kernel_gradient(x, g, len(kernel)).astype(kernel.dtype)


@differentiable(_gradient, static=1)
def depthwise(implementation: str | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``y[b, h, w, d] = sum_{i, j} x[b, h + i - K / 2, w + j - K / 2, d] kernel[i, j, 0, d]``, zeros beyond the edge.

    Args:
      implementation: a name in :data:`IMPLEMENTATIONS`; None is "shifts" on a CPU and else "conv".
      x: ``[B, H, W, D]``; its type is the compute type.
      kernel: ``[K, K, 1, D]`` in the parameter type, K odd.

    Returns:
      ``[B, H, W, D]`` in the type of ``x``, summed in float32, as are the gradients.

    Raises:
      UserError: an unknown implementation.
    """
    return _depthwise(implementation, x, kernel)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        preferred_element_type=jnp.float32,
    )


def _conv_kernel_gradient(x: jax.Array, g: jax.Array, size: int) -> jax.Array:
    x, g = (a.astype(jnp.float32) for a in (x, g))
    zero = jnp.zeros((size, size, 1, x.shape[-1]))
    return jax.vjp(lambda kernel: _conv(x, kernel), zero)[1](g)[0]


def _padded(x: jax.Array, size: int) -> jax.Array:
    edge = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), edge, edge, (0, 0)))


def _shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (h, w) = len(kernel), x.shape[1:3]
    wide, weights = _padded(x, size), kernel.astype(x.dtype).astype(jnp.float32)
    y = jnp.zeros(x.shape, jnp.float32)
    for i, j in itertools.product(range(size), repeat=2):
        y += wide[:, i : i + h, j : j + w].astype(jnp.float32) * weights[i, j].reshape(1, 1, 1, -1)
    return y


def _shifts_kernel_gradient(x: jax.Array, g: jax.Array, size: int) -> jax.Array:
    wide, (h, w), g = _padded(x, size), x.shape[1:3], g.astype(jnp.float32)

    def row(i: jax.Array) -> jax.Array:
        """Of the kernel; one after the other take a third of the time of all at once, and compile in a quarter."""
        at = jax.lax.dynamic_slice_in_dim(wide, i, h, axis=1)
        terms = (at[:, :, j : j + w].astype(jnp.float32) * g for j in range(size))
        return jnp.stack([jnp.sum(jnp.sum(term, axis=(0, 1)), axis=0) for term in terms])

    return jax.lax.map(row, jnp.arange(size))[:, :, None]


class Way(NamedTuple):
    """One way to compute the convolution, in float32.

    Attributes:
      forward: ``(x, kernel) -> y``.
      kernel_gradient: ``(x, gradient of y, K) -> gradient of the kernel``.
    """

    forward: Callable[[jax.Array, jax.Array], jax.Array]
    kernel_gradient: Callable[[jax.Array, jax.Array, int], jax.Array]


IMPLEMENTATIONS: dict[str, Way] = {
    "conv": Way(_conv, _conv_kernel_gradient),
    "shifts": Way(_shifts, _shifts_kernel_gradient),
}
"""XLA's grouped convolution, which a CPU computes group by group; or a sum of shifted products, one fused loop."""


def _way(implementation: str | None) -> Way:
    usual = "shifts" if sharding.platform() == "cpu" else "conv"
    return config.lookup(IMPLEMENTATIONS, implementation or usual, "implementation of depthwise convolutions")
