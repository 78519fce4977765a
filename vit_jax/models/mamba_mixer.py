"""MambaMixer (Behrouz et al. 2024, arXiv:2403.19888): selective scans across tokens and across channels.

There is no official code: what the paper leaves open is said at each class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.linear import logical
from vit_jax.layers.norm import RMSNorm
from vit_jax.layers.pool import average
from vit_jax.layers.selective import CrossMixer, SelectiveMixer
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import Features
from vit_jax.models.roles import Kind
from vit_jax.models.vim import Scanning


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
