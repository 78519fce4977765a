"""Vision Mamba (Vim): a selective scan in both directions instead of attention (Zhu et al. 2024, arXiv:2401.09417)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Depth, Pixels, Range, Share, Size
from vit_jax.kernels.selective_scan import selective_scan
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.embed import PatchEmbed, PositionEmbedding
from vit_jax.layers.linear import Dense, DType, Linear, LinearSpec, logical
from vit_jax.layers.mlp import Activation, activate
from vit_jax.layers.norm import RMSNorm
from vit_jax.layers.stack import Blocks, common
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import PLAIN, Features, ImageModel
from vit_jax.models.roles import Kind
from vit_jax.types import UserError

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
      short: length in tokens of the convolution.
      activation: nonlinearity behind the convolution.
      dtype: compute type; parameters are float32.
      implementation: how the scan is computed, as :func:`vit_jax.kernels.selective_scan.selective_scan` takes it.
    """

    state: int
    rank: int
    short: int
    activation: Activation
    dtype: DType = "float32"
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, E] -> [B, N, E]``; no output depends on a later token."""
        e, n = x.shape[-1], self.state
        x = activate(self.activation, self._short(x))
        parts = Linear(self.rank + 2 * n, ("mlp", None), self.dtype, False, FAN_IN, name="x_proj")(x)
        step, b, c = jnp.split(parts, (self.rank, self.rank + n), axis=-1)
        step = Linear(e, (None, "mlp"), self.dtype, False, FAN_IN, name="dt_proj")(step).astype(jnp.float32)
        step += self.param("bias_dt", logical(_steps, ("mlp",)), (e,))[None, None]
        rates = -jnp.exp(self.param("A_log", logical(_rates, ("mlp", None)), (e, n)))
        skip = self.param("D", logical(nn.initializers.ones, ("mlp",)), (e,))
        return selective_scan(x, jax.nn.softplus(step), rates, b, c, skip, implementation=self.implementation)

    def _short(self, x: jax.Array) -> jax.Array:
        """Each channel's weighted sum over the last ``short`` tokens, the newest weight last."""
        n, e = x.shape[1:]
        weights = self.param("kernel_conv", logical(_convolution, (None, "mlp")), (self.short, e)).astype(x.dtype)
        init = lambda key, shape: _convolution(key, (self.short, *shape))[0]  # noqa: E731
        bias = self.param("bias_conv", logical(init, ("mlp",)), (e,)).astype(x.dtype)
        padded = jnp.pad(x, ((0, 0), (self.short - 1, 0), (0, 0)))
        return sum((padded[:, i : i + n] * weights[i][None, None] for i in range(self.short)), bias[None, None])


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
        scan = functools.partial(Direction, rank=-(-d // 16), **common(self, Direction))
        y = scan(name="forward")(value) + jnp.flip(scan(name="backward")(jnp.flip(value, 1)), 1)
        y = 0.5 * y * activate(self.activation, gate)
        init = nn.initializers.variance_scaling(1 / (3 * self.depth), "fan_in", "uniform")
        return linear(d, name="out", axes=("mlp", "embed"), kernel_init=init)(y)


class VimBlock(ResidualBlock):
    """``x + mixer(norm(x))``: there is no MLP.

    Attributes:
      mixer: makes the :class:`SelectiveMixer`.
    """

    mlp_dim: int = 0
    mixer: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, drop_path: float | jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``; arguments as of :class:`vit_jax.layers.block.Block`."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        y = self.mixer(name="mixer")(RMSNorm(self.dtype, self.norm_epsilon, name="norm_mixer")(x))
        return self.add(x, "mixer", y, keys, drop_path)


class Vim(Blocks, ImageModel):
    """Vim, with cls in the middle of the grid's tokens, where the scans of both directions have seen half of them.

    Between the blocks tokens are float32 whatever ``dtype`` says. In parameters and features cls comes first, as in
    other models. Not reproduced: the published training.

    Attributes:
      patch: side of a patch in pixels.
      width: channels D of a token.
      depth: number of blocks.
      expand: channels E of the scans, as a multiple of the width.
      state: numbers of a channel's state.
      short: length in tokens of the convolutions before the scans.
      activation: nonlinearity behind the convolutions and of the gates.
      norm_epsilon: added to the mean square in every RMS norm.
      mlp_linear: linear map (dense, or a structured one) of the projections into and out of the scans.
      ffn: None; there are no MLPs.
      selective_scan: implementation of :func:`vit_jax.kernels.selective_scan.selective_scan`, None picks.
    """

    patch: Pixels = 16
    width: Size = 192
    depth: Depth = 24
    expand: Annotated[int, Range(1, 16)] = 2
    state: Annotated[int, Range(1, 1024)] = 16
    short: Annotated[int, Range(1, 1024)] = 4
    activation: Activation = "silu"
    norm_epsilon: Share = 1e-5
    selective_scan: str | None = None

    KINDS: ClassVar[Mapping[str, Kind]] = {**ImageModel.KINDS, **dict.fromkeys(("A_log", "D"), "filter")}
    """Rates and skips are not decayed, as in the published recipes."""

    def encode(self, image: jax.Array, train: bool) -> Features:
        if self.ffn is not None:
            raise UserError(f"a Vim has no MLPs for {self.ffn} to stand in place of; leave ffn=None.")
        grid = PatchEmbed(self.patch, self.width, self.dtype, name="patch")(image)
        b, h, w, d = grid.shape
        cls = self.param("cls", logical(nn.initializers.normal(0.02), (None, None, "embed")), (1, 1, d))
        cls = jnp.broadcast_to(cls.astype(self.dtype), (b, 1, d))
        x = PositionEmbedding(self.dtype, name="position")(jnp.concatenate([cls, grid.reshape(b, -1, d)], axis=1))
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        middle = h * w // 2
        x = jnp.concatenate([x[:, 1 : middle + 1], x[:, :1], x[:, middle + 1 :]], axis=1)
        mixer = functools.partial(SelectiveMixer, implementation=self.selective_scan, **common(self, SelectiveMixer))
        block = functools.partial(VimBlock, mixer=mixer)
        x = self.stack(block, dtype="float32", final_norm=False, name="encoder")(x, train=train)
        x = RMSNorm(self.dtype, self.norm_epsilon, name="norm")(x)
        cls = x[:, middle : middle + 1]
        return Features(jnp.concatenate([cls, x[:, :middle], x[:, middle + 1 :]], axis=1), cls[:, 0])

    def _prefix(self) -> int:
        return 1


PLAIN[Vim] = {"selective_scan": "xla"}
