"""Convolutions; of depthwise ones every channel has a filter of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, sharding
from vit_jax.kernels.products import differentiable
from vit_jax.layers.linear import DType, Init, logical, matmul

Grid = tuple[int, int]
"""Rows and columns of tokens."""


def on_grid(run: Callable[[jax.Array], jax.Array], x: jax.Array, grid: Grid) -> jax.Array:
    """``run``, ``[B, H, W, D] -> [B, H, W, D']``, of tokens ``[B, N, D]`` that lie in a grid row by row."""
    y = run(x.reshape(x.shape[0], *grid, x.shape[-1]))
    return y.reshape(x.shape[0], -1, y.shape[-1])


class Conv(nn.Module):
    """Weighted sums over squares around every ``stride``-th place, zeros beyond the edge; a subclass may change them.

    Operands are rounded to ``dtype`` and multiplied as float32, so the gradient's sums are of float32, too: a CPU has
    no fast bfloat16 convolution, and the matrix units of TPUs round their operands themselves.

    Attributes:
      features: output channels.
      size: side K of the square; odd.
      stride: step in both directions.
      axes: logical axes of the input's and the output's channels, for sharding.
      dtype: compute type; parameters ``kernel [K, K, C, features]`` and ``bias [features]`` are float32.
      use_bias: whether a bias is added.
    """

    features: int
    size: int
    stride: int = 1
    axes: tuple[str | None, str | None] = (None, "embed")
    dtype: DType = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]``."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", logical(nn.initializers.lecun_normal(), (None, None, *self.axes)), shape)
        kernel, x = self.weights(kernel), x.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", logical(nn.initializers.zeros, self.axes[1:]), shape[-1:])
        if (self.size, self.stride) == (1, 1):
            return matmul(x, kernel[0, 0], bias)
        a, b = x.astype(jnp.float32), kernel.astype(self.dtype).astype(jnp.float32)
        y = jax.lax.conv_general_dilated(a, b, (self.stride,) * 2, [(self.size // 2,) * 2] * 2, dimension_numbers=AXES)
        return (y if bias is None else y + bias.reshape(1, 1, 1, -1)).astype(self.dtype)

    def weights(self, kernel: jax.Array) -> jax.Array:
        """The kernel that is used, of the parameter."""
        return kernel


class DepthwiseConv(nn.Module):
    """Each channel's weighted sum over a square around every ``stride``-th place, zeros beyond the edge.

    Attributes:
      size: side K of the square; odd.
      dtype: compute type; parameters ``kernel [K, K, 1, D]`` and ``bias [D]`` are float32.
      use_bias: whether a bias is added.
      stride: step in both directions.
      kernel_init: initialiser of the kernel.
    """

    size: int
    dtype: DType = "float32"
    use_bias: bool = True
    stride: int = 1
    kernel_init: Init = nn.initializers.truncated_normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, D] -> [B, ceil(H / stride), ceil(W / stride), D]``."""
        init = logical(self.kernel_init, (None, None, None, "embed"))
        kernel = self.param("kernel", init, (self.size, self.size, 1, x.shape[-1]))
        y = depthwise(None, self.stride, x.astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", logical(nn.initializers.zeros, ("embed",)), x.shape[-1:])
            y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


AXES = ("NHWC", "HWIO", "NHWC")


def _depthwise(implementation: str | None, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _way(implementation).forward(x, kernel, stride).astype(x.dtype)


def _gradient(
    implementation: str | None, stride: int, x: jax.Array, kernel: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    g = g.astype(x.dtype)
    # The gradient of every stride-th output is that of all, with zeros for the others.
    apart = [(0, n - (stride * (m - 1) + 1), stride - 1) for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *apart, (0, 0, 0)]) if stride > 1 else g
    back = _depthwise(implementation, 1, spread, kernel[::-1, ::-1])
    return back, _way(implementation).kernel_gradient(x, g, len(kernel), stride).astype(kernel.dtype)


@differentiable(_gradient, static=2)
def depthwise(implementation: str | None, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``y[b, h, w, d] = sum_{i, j} x[b, sh + i - K / 2, sw + j - K / 2, d] kernel[i, j, 0, d]``, zeros beyond the edge.

    Args:
      implementation: a name in :data:`IMPLEMENTATIONS`; None is "shifts" on a CPU and else "conv".
      stride: s.
      x: ``[B, H, W, D]``; its type is the compute type.
      kernel: ``[K, K, 1, D]`` in the parameter type, K odd.

    Returns:
      ``[B, ceil(H / s), ceil(W / s), D]`` in the type of ``x``, summed in float32, as are the gradients.

    Raises:
      UserError: an unknown implementation.
    """
    return _depthwise(implementation, stride, x, kernel)


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        [(len(kernel) // 2,) * 2] * 2,
        dimension_numbers=AXES,
        feature_group_count=x.shape[-1],
        preferred_element_type=jnp.float32,
    )


def _conv_kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int) -> jax.Array:
    x, g = (a.astype(jnp.float32) for a in (x, g))
    zero = jnp.zeros((size, size, 1, x.shape[-1]))
    return jax.vjp(lambda kernel: _conv(x, kernel, stride), zero)[1](g)[0]


def _padded(x: jax.Array, size: int) -> jax.Array:
    edge = (size // 2, size // 2)
    return jnp.pad(x, ((0, 0), edge, edge, (0, 0)))


def _shifts(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size, (h, w) = len(kernel), x.shape[1:3]
    wide, weights = _padded(x, size), kernel.astype(x.dtype).astype(jnp.float32)
    y: Any = 0.0
    for i, j in itertools.product(range(size), repeat=2):
        at = wide[:, i : i + h : stride, j : j + w : stride]
        y += at.astype(jnp.float32) * weights[i, j].reshape(1, 1, 1, -1)
    return y  # type: ignore[no-any-return]


def _shifts_kernel_gradient(x: jax.Array, g: jax.Array, size: int, stride: int) -> jax.Array:
    wide, (h, w), g = _padded(x, size), x.shape[1:3], g.astype(jnp.float32)

    def row(i: jax.Array) -> jax.Array:
        """Of the kernel; one after the other take a third of the time of all at once, and compile in a quarter."""
        at = jax.lax.dynamic_slice_in_dim(wide, i, h, axis=1)[:, ::stride]
        terms = (at[:, :, j : j + w : stride].astype(jnp.float32) * g for j in range(size))
        return jnp.stack([jnp.sum(jnp.sum(term, axis=(0, 1)), axis=0) for term in terms])

    return jax.lax.map(row, jnp.arange(size))[:, :, None]


class Way(NamedTuple):
    """One way to compute the convolution, in float32.

    Attributes:
      forward: ``(x, kernel, stride) -> y``.
      kernel_gradient: ``(x, gradient of y, K, stride) -> gradient of the kernel``.
    """

    forward: Callable[[jax.Array, jax.Array, int], jax.Array]
    kernel_gradient: Callable[[jax.Array, jax.Array, int, int], jax.Array]


IMPLEMENTATIONS: dict[str, Way] = {
    "conv": Way(_conv, _conv_kernel_gradient),
    "shifts": Way(_shifts, _shifts_kernel_gradient),
}
"""XLA's grouped convolution, which a CPU computes group by group; or a sum of shifted products, one fused loop."""


def _way(implementation: str | None) -> Way:
    usual = "shifts" if sharding.platform() == "cpu" else "conv"
    return config.lookup(IMPLEMENTATIONS, implementation or usual, "implementation of depthwise convolutions")
