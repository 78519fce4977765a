"""Mixers by selective scans (Mamba, Gu and Dao 2023, arXiv:2312.00752): of tokens in two directions, of a grid in four.

Vim (Zhu et al. 2024, arXiv:2401.09417) and MambaMixer (Behrouz et al. 2024, arXiv:2403.19888), which has no official
code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.kernels.selective_scan import selective_scan
from vit_jax.layers.conv import DepthwiseConv, Grid, on_grid
from vit_jax.layers.linear import Dense, DType, Linear, LinearSpec, logical
from vit_jax.layers.mlp import Activation, activate
from vit_jax.layers.stack import common

KERNEL = 3
"""Side of the depthwise convolution before the scans of a grid."""
LEAST_STEP, STEPS = 1e-4, (1e-3, 0.1)
"""Step sizes at the beginning: none is below the first; log-uniform between the others."""
FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within ``1 / sqrt(inputs)``, as PyTorch's linear maps begin."""


def _convolution(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    limit = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def _rates(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """``log(1 ... n)`` for every channel (S4D-real, Gu et al. 2022, arXiv:2206.11893)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape)


def _steps(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """What softplus makes step sizes of."""
    low, high = map(math.log, STEPS)
    step = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), LEAST_STEP)
    return step + jnp.log(-jnp.expm1(-step))


class Direction(nn.Module):
    """A causal convolution of every channel, the activation, and a selective scan whose parameters come of its result.

    Step sizes and the scan are float32. The bias of the convolution begins within the bounds of its weights.

    Attributes:
      state: numbers n of a channel's state.
      rank: features R of which the step sizes are made.
      short: length in tokens of the convolution; None for neither it nor the activation.
      activation: nonlinearity behind the convolution.
      dtype: compute type; parameters are float32.
      implementation: how the scan is computed, as :func:`vit_jax.kernels.selective_scan.selective_scan` takes it.
    """

    state: int
    rank: int
    short: int | None
    activation: Activation
    dtype: DType = "float32"
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, E] -> [B, N, E]``; no output depends on a later token."""
        e, n = x.shape[-1], self.state
        if self.short is not None:
            x = activate(self.activation, self._short(x, self.short))
        parts = Linear(self.rank + 2 * n, ("mlp", None), self.dtype, False, FAN_IN, name="x_proj")(x)
        step, b, c = jnp.split(parts, (self.rank, self.rank + n), axis=-1)
        step = Linear(e, (None, "mlp"), self.dtype, False, FAN_IN, name="dt_proj")(step).astype(jnp.float32)
        step += self.param("bias_dt", logical(_steps, ("mlp",)), (e,))[None, None]
        rates = -jnp.exp(self.param("A_log", logical(_rates, ("mlp", None)), (e, n)))
        skip = self.param("D", logical(nn.initializers.ones, ("mlp",)), (e,))
        return selective_scan(x, jax.nn.softplus(step), rates, b, c, skip, implementation=self.implementation)

    def _short(self, x: jax.Array, size: int) -> jax.Array:
        """Each channel's weighted sum over the last ``size`` tokens, the newest weight last."""
        n, e = x.shape[1:]
        weights = self.param("kernel_conv", logical(_convolution, (None, "mlp")), (size, e)).astype(x.dtype)
        init = lambda key, shape: _convolution(key, (size, *shape))[0]  # noqa: E731
        bias = self.param("bias_conv", logical(init, ("mlp",)), (e,)).astype(x.dtype)
        padded = jnp.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
        return sum((padded[:, i : i + n] * weights[i][None, None] for i in range(size)), bias[None, None])


def both_ways(
    scan: Callable[..., nn.Module], x: jax.Array, names: tuple[str, str] = ("forward", "backward")
) -> jax.Array:
    """``[B, N, E] -> [B, N, E]``: the mean of what two scans of these names make, the second of the reverse."""
    forward, backward = (scan(name=name) for name in names)
    return 0.5 * (forward(x) + jnp.flip(backward(jnp.flip(x, 1)), 1))


class SelectiveMixer(nn.Module):
    """``out((forward(x) + backward(x)) / 2 * activation(gate))``, where ``backward`` sees the tokens in reverse.

    Attributes:
      depth: blocks of the model; the output projection begins smaller by its square root.
      expand: channels E of the scans, as a multiple of the width D.
      state: numbers n of a channel's state.
      short: length in tokens of the convolutions before the scans.
      mlp_linear: linear map (dense, or a structured one) of the projections ``in`` and ``out``.
      activation: nonlinearity behind the convolutions and of the gate.
      dtype: compute type; parameters, step sizes and states are float32.
      implementation: how the scans are computed, as :func:`vit_jax.kernels.selective_scan.selective_scan` takes it.
    """

    depth: int = 1
    expand: int = 2
    state: int = 16
    short: int = 4
    mlp_linear: LinearSpec = Dense()
    activation: Activation = "silu"
    dtype: DType = "float32"
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``."""
        d = x.shape[-1]
        linear = functools.partial(self.mlp_linear, dtype=self.dtype, use_bias=False)
        parts = linear(2 * self.expand * d, name="in", axes=("embed", "mlp"), kernel_init=FAN_IN)(x)
        value, gate = jnp.split(parts, 2, axis=-1)
        y = self.scanned(value, -(-d // 16)) * activate(self.activation, gate)
        init = nn.initializers.variance_scaling(1 / (3 * self.depth), "fan_in", "uniform")
        return linear(d, name="out", axes=("mlp", "embed"), kernel_init=init)(y)

    def scanned(self, x: jax.Array, rank: int) -> jax.Array:
        """``[B, N, E] -> [B, N, E]``, step sizes made of ``rank`` features."""
        return both_ways(functools.partial(Direction, rank=rank, **common(self, Direction)), x)


class CrossMixer(SelectiveMixer):
    """A :class:`SelectiveMixer` of a grid: ``out(mean of four scans * activation(gate))``.

    A depthwise convolution and the activation come first, for all scans; they go along the rows and along the columns,
    each in both directions (VMamba, Liu et al. 2024, arXiv:2401.10166).

    Attributes:
      grid: rows and columns of the tokens.
    """

    grid: Grid = (1, 1)

    def scanned(self, x: jax.Array, rank: int) -> jax.Array:
        x = activate(self.activation, on_grid(DepthwiseConv(KERNEL, self.dtype, name="conv"), x, self.grid))
        scan = functools.partial(Direction, rank=rank, **{**common(self, Direction), "short": None})
        along = both_ways(scan, x)
        down = both_ways(scan, turned(x, self.grid), ("down", "up"))
        return 0.5 * (along + turned(down, self.grid[::-1]))


def turned(x: jax.Array, grid: Grid) -> jax.Array:
    """Tokens ``[B, N, E]`` that lie row by row, column by column; with rows and columns exchanged the inverse."""
    return on_grid(lambda x: jnp.swapaxes(x, 1, 2), x, grid)
