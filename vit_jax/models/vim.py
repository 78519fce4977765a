"""Selective scans instead of attention: Vision Mamba (Vim), and across channels, too, MambaMixer.

Zhu et al. 2024, arXiv:2401.09417; Behrouz et al. 2024, arXiv:2403.19888, which has no official code: what its paper
leaves open is said at each class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.checks import Depth, Pixels, Range, Share, Size
from vit_jax.kernels.selective_scan import selective_scan
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.conv import DepthwiseConv
from vit_jax.layers.embed import PatchEmbed, PositionEmbedding
from vit_jax.layers.linear import Dense, DType, Linear, LinearSpec, logical
from vit_jax.layers.mlp import Activation, activate
from vit_jax.layers.norm import RMSNorm
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Blocks, common
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import PLAIN, Features, ImageModel
from vit_jax.models.roles import Kind
from vit_jax.models.stages import Grid, on_grid
from vit_jax.types import UserError

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


class Scanning(Blocks, ImageModel):
    """Fields of models of selective scans.

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

    def grid(self, image: jax.Array) -> jax.Array:
        """float32 ``[B, H, W, C]`` -> tokens ``[B, h, w, D]``."""
        if self.ffn is not None:
            raise UserError(f"a {type(self).__name__} has no MLPs for {self.ffn} to stand in place of; leave ffn=None.")
        return PatchEmbed(self.patch, self.width, self.dtype, name="patch")(image)

    def mixer(self, kind: type[nn.Module], **options: Any) -> Any:
        """Makes a ``kind`` of :class:`SelectiveMixer` with the model's fields; ``options`` over them."""
        return functools.partial(kind, **{"implementation": self.selective_scan, **common(self, kind), **options})


class Vim(Scanning):
    """Vim, with cls in the middle of the grid's tokens, where the scans of both directions have seen half of them.

    Between the blocks tokens are float32 whatever ``dtype`` says. In parameters and features cls comes first, as in
    other models. Not reproduced: the published training.
    """

    def encode(self, image: jax.Array, train: bool) -> Features:
        grid = self.grid(image)
        b, h, w, d = grid.shape
        cls = self.param("cls", logical(nn.initializers.normal(0.02), (None, None, "embed")), (1, 1, d))
        cls = jnp.broadcast_to(cls.astype(self.dtype), (b, 1, d))
        x = PositionEmbedding(self.dtype, name="position")(jnp.concatenate([cls, grid.reshape(b, -1, d)], axis=1))
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        middle = h * w // 2
        x = jnp.concatenate([x[:, 1 : middle + 1], x[:, :1], x[:, middle + 1 :]], axis=1)
        block = functools.partial(VimBlock, mixer=self.mixer(SelectiveMixer))
        x = self.stack(block, dtype="float32", final_norm=False, name="encoder")(x, train=train)
        x = RMSNorm(self.dtype, self.norm_epsilon, name="norm")(x)
        cls = x[:, middle : middle + 1]
        return Features(jnp.concatenate([cls, x[:, :middle], x[:, middle + 1 :]], axis=1), cls[:, 0])

    def _prefix(self) -> int:
        return 1


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


class MambaMixerBlock(ResidualBlock):
    """A scan across tokens and one across channels, of weighted sums of all that came before.

    With ``y_0`` the patches and ``t_l``, ``c_l`` what the mixers of block l give, a mixer takes, normalised,
    ``a_0 y_0 + a_1 t_1 + b_1 c_1 + ...`` over all outputs there are, with learned scalars of its own. They begin as
    ones, which is a residual network without more; the paper does not say how, nor of norms. What the next block's
    token mixer takes is summed here, by ``weights_token``.

    Attributes:
      tokens: makes the mixer of tokens, a :class:`CrossMixer`.
      channels: makes the mixer of channels, a :class:`SelectiveMixer`, whose features are tokens.
    """

    mlp_dim: int = 0
    tokens: Any = None
    channels: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array | tuple[jax.Array, ...],
        *,
        key: jax.Array | None = None,
        drop_path: float | jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """What the block takes, ``[B, N, D]``, and all outputs so far; of the first block the patches alone.

        What the next one takes, and two outputs more. Arguments are as of :class:`vit_jax.layers.block.Block`.
        """
        x, *seen = x if isinstance(x, tuple) else (x, x)
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        norm = functools.partial(RMSNorm, self.dtype, self.norm_epsilon)
        y = self.tokens(name="token_mixer")(norm(name="norm_token")(x))
        seen.append(self.output("token", y, keys[:2], drop_path).astype(x.dtype))
        y = norm(name="norm_channel")(self._sum("weights_channel", seen))
        y = jnp.swapaxes(self.channels(name="channel_mixer")(jnp.swapaxes(y, 1, 2)), 1, 2)
        seen.append(self.output("channel", y, keys[2:], drop_path).astype(x.dtype))
        return self._sum("weights_token", seen), *seen

    def _sum(self, name: str, outputs: Sequence[jax.Array]) -> jax.Array:
        """``sum_i w_i outputs_i`` in float32, in the type of the outputs."""
        weights = self.param(name, logical(nn.initializers.ones, (None,)), (len(outputs),))
        total = sum((w * y.astype(jnp.float32) for w, y in zip(weights, outputs, strict=True)), jnp.zeros(()))
        return sharding.constrain(total.astype(outputs[0].dtype), "batch", None, None)


class MambaMixer(Scanning):
    """MambaMixer: patches without positions or cls, blocks of selective mixers of tokens and channels, the average.

    Mixers of channels map tokens to tokens, so that parameters depend on the image's size. Between the blocks tokens
    are float32 whatever ``dtype`` says. Not reproduced: the published ViM2's stages, of which no code tells the sizes,
    its training, and the model of time series.
    """

    KINDS: ClassVar[Mapping[str, Kind]] = {**Scanning.KINDS, "weights": "scale"}

    def encode(self, image: jax.Array, train: bool) -> Features:
        grid = self.grid(image)
        x = grid.reshape(grid.shape[0], -1, self.width)
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        make = functools.partial(self.mixer, depth=2 * self.depth)
        mixers = {"tokens": make(CrossMixer, grid=(grid.shape[1], grid.shape[2])), "channels": make(SelectiveMixer)}
        block = functools.partial(MambaMixerBlock, **mixers)
        x = self.stack(block, dtype="float32", final_norm=False, name="encoder")(x, train=train)
        tokens = RMSNorm(self.dtype, self.norm_epsilon, name="norm")(x)
        return Features(tokens, average(tokens))

    def with_fields(self, block: Callable[..., nn.Module]) -> Any:
        """One such for every depth: no two sum as many outputs."""
        return (super().with_fields(block),) * self.depth


PLAIN[Scanning] = {"selective_scan": "xla"}
