"""What models of several stages share: patches, blocks at ever coarser grids of ever more channels, their average.

ConvNeXt (Liu et al. 2022, arXiv:2201.03545, section 2.2) and what was built after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from vit_jax.checks import Depth, Finite, Pixels, Size
from vit_jax.layers.conv import Grid, on_grid
from vit_jax.layers.embed import PatchEmbed
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.pool import average
from vit_jax.layers.stack import Blocks
from vit_jax.models.base import Features, ImageModel
from vit_jax.types import UserError

MLP_RATIO = 4
"""Hidden units of a block's MLP to its channels."""


def each_stage(model: nn.Module, first: str, *others: str) -> None:
    """Raises a :class:`UserError` where one of the fields ``others`` has not an entry for each one of ``first``."""
    stages = getattr(model, first)
    for field in others:
        if not len(values := getattr(model, field)) == len(stages) > 0:
            raise UserError(
                f"{field}={values} is of {len(values)} stages and {first}={stages} of {len(stages)}; "
                "give both an entry for each stage."
            )


def drop_path_rates(rate: float, depths: Sequence[int], stage: int) -> dict[str, float]:
    """Stochastic depth of a stage's first and last block: by a line over all blocks from 0 to ``rate``."""
    before, last = sum(depths[:stage]), max(sum(depths) - 1, 1)
    ends = {"first_drop_path": before, "drop_path": before + depths[stage] - 1}
    return {name: rate * block / last for name, block in ends.items()}


class Stages(Blocks, ImageModel):
    """Patches and a norm, stages of blocks, between two of them a norm and patches of 2x2, the average, a norm, a head.

    Parameters are those of any image size. A subclass writes :meth:`block`.

    Attributes:
      depths: blocks of each stage.
      widths: channels of each stage.
      patch: side of the first patches, in pixels.
      final_norm: whether the last norm is of the tokens, before their average; else it is of the average alone.
    """

    depths: tuple[Depth, ...] = (3, 3, 9, 3)
    widths: tuple[Size, ...] = (96, 192, 384, 768)
    patch: Pixels = 4
    layer_scale: Finite | None = 1e-6
    final_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        each_stage(self, "depths", "widths")

    def block(self, stage: int) -> Callable[..., nn.Module]:
        """Makes a block of the stage, a module ``(tokens [B, N, D], *, grid, key, drop_path) -> [B, N, D]``."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Channels of the tokens and the pooled features."""
        return self.widths[-1]

    @property
    def stride(self) -> int:
        """Pixels along a side of what one token of the last stage stands for."""
        return self.patch * 2 ** (len(self.depths) - 1)

    def check_side(self, height: int, width: int, what: str = "image size") -> None:
        """Raises a :class:`UserError` where the last stage has no whole number of tokens."""
        s = self.stride
        if height % s or width % s:
            fit = f"{max(height // s, 1) * s}x{max(width // s, 1) * s}"
            raise UserError(
                f"{what} {height}x{width} is not divisible by {s}, the stride of the {len(self.depths)} stages; "
                f"use {fit} for example."
            )

    def encode(self, image: jax.Array, train: bool) -> Features:
        self.check_side(image.shape[1], image.shape[2])
        norm = functools.partial(LayerNorm, self.dtype, self.norm_epsilon)
        x = PatchEmbed(self.patch, self.widths[0], self.dtype, name="patch")(image)
        grid: Grid = (x.shape[1], x.shape[2])
        tokens = norm(name="norm_pre")(x.reshape(x.shape[0], -1, x.shape[-1]))
        for i, width in enumerate(self.widths):
            if i:
                halve = PatchEmbed(2, width, self.dtype, name=f"stage_{i}_down")
                tokens = on_grid(halve, norm(name=f"stage_{i}_norm")(tokens), grid)
                grid = (grid[0] // 2, grid[1] // 2)
            tokens = self._stage(i)(tokens, train=train, grid=grid)
        if self.final_norm:
            tokens = norm(name="norm")(tokens)
            return Features(tokens, average(tokens))
        return Features(tokens, norm(name="norm")(average(tokens)))

    def _stage(self, i: int) -> Any:
        rates = drop_path_rates(self.drop_path, self.depths, i)
        block = functools.partial(self.block(i), mlp_dim=MLP_RATIO * self.widths[i])
        return self.stack(block, depth=self.depths[i], **rates, final_norm=False, name=f"stage_{i}")
