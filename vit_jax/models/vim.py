"""Vision Mamba (Vim, Zhu et al. 2024, arXiv:2401.09417): selective scans in both directions instead of attention."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Depth, Pixels, Range, Share, Size
from vit_jax.layers.block import ResidualBlock
from vit_jax.layers.embed import PatchEmbed, PositionEmbedding
from vit_jax.layers.linear import logical
from vit_jax.layers.mlp import Activation
from vit_jax.layers.norm import RMSNorm
from vit_jax.layers.selective import SelectiveMixer
from vit_jax.layers.stack import Blocks, common
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import PLAIN, Features, ImageModel
from vit_jax.models.roles import Kind
from vit_jax.types import UserError


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


PLAIN[Scanning] = {"selective_scan": "xla"}
