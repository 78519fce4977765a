"""LiFT (Suri et al. 2024, arXiv:2403.14625): features of a frozen ViT on a grid of twice the side."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import Pixels, Range
from vit_jax.layers.conv import Conv
from vit_jax.layers.embed import along_both, grid_of, resize_matrix
from vit_jax.layers.linear import DType, Linear
from vit_jax.models.base import Doubled, Features, ImageModel, Upsampler
from vit_jax.models.images import IMAGES
from vit_jax.models.mobilenet import HE, BatchNorm
from vit_jax.models.roles import Part
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

CHANNELS = 32
"""Of what is seen of the image itself."""
CONVS = 2
"""Convolutions that halve the image, before pooling does."""


class Lift(nn.Module):
    """Features and their image to features of twice as many rows and columns (section 3.1).

    The image is halved until its grid has twice the rows of the features, a; once more, b. The features beside b go
    through a transposed convolution of 2x2, these beside a through two of 3x3, each with batch norm and ReLU, and a
    last map makes the tower's channels of them.

    Attributes:
      dtype: compute type; parameters are float32.
    """

    dtype: DType = "float32"

    @nn.compact
    def __call__(self, features: jax.Array, image: jax.Array, *, batch: bool) -> jax.Array:
        """``[B, h, w, D]`` and ``[B, 2^k h, 2^k w, 3]`` -> ``[B, 2h, 2w, D]``; ``batch`` as of :class:`BatchNorm`."""
        width, halvings = features.shape[-1], int(math.log2(image.shape[1] // features.shape[1]))

        def conv(name: str, x: jax.Array, channels: int, stride: int = 1) -> jax.Array:
            x = Conv(channels, 3, stride, dtype=self.dtype, use_bias=False, name=name)(x)
            return BatchNorm(1e-5, self.dtype, "relu", name=f"norm_{name}")(x, batch=batch)

        a = image
        for i in range(halvings - 1):
            pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
            a = conv(f"image_{i}", a, CHANNELS, 2) if i < CONVS else pool(a)
        b = conv("image_last", a, CHANNELS, 2)
        middle = (width + CHANNELS) // 2
        x = jnp.concatenate([features.astype(self.dtype), b], axis=-1)
        x = Linear(4 * middle, ("embed", None), dtype=self.dtype, kernel_init=HE, name="up")(x)
        x = spread(x)
        x = jnp.concatenate([x, a], axis=-1)
        for i in range(2):
            x = conv(f"conv_{i}", x, max(width // 2, 1))
        return Linear(width, (None, "embed"), dtype=self.dtype, name="out")(x)


def spread(x: jax.Array) -> jax.Array:
    """``[B, h, w, 4C] -> [B, 2h, 2w, C]``: each place's four quarters to its four places, row by row."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class LiFT(ImageModel, Upsampler):
    """A frozen ViT and what doubles the rows and columns of its features.

    Tokens are the doubled grid, row by row; pooled features, and a head if there is one, are the tower's. Images have
    any sides of which ``patch`` is a part: learned positions are resized from those of ``side``.

    Attributes:
      image_tower: a ViT of ``models.IMAGES``; it runs in evaluation mode and gets no gradient. Leave it out of the
        optimizer by ``optim.freeze`` as well.
      side: side of the images, in pixels, that the tower's positions are for.
    """

    image_tower: Annotated[ViT, config.Choice(IMAGES, ViT)] = ViT()
    side: Pixels = 224
    num_classes: Annotated[int, Range(0, 2**20)] = 0

    ENCODER: ClassVar[str | None] = "image_tower"
    PARTS: ClassVar[Mapping[str, Part]] = {**ImageModel.PARTS, "lift": "head"}

    def __post_init__(self) -> None:
        tower = self.image_tower
        if tower.num_classes:  # its own head would be parameters that nothing uses
            object.__setattr__(self, "image_tower", tower.clone(num_classes=0))
        super().__post_init__()

    @property
    def dtype(self) -> DType:
        """Compute type of the tower."""
        return self.image_tower.dtype

    def encode(self, image: jax.Array, train: bool) -> Features:
        found = self._tower(image)
        x = Lift(self.dtype, name="lift")(self._grid(found, image), image, batch=train)
        return Features(x.reshape(x.shape[0], -1, x.shape[-1]), found.pooled)

    @nn.compact
    def doubled(self, image: jax.Array, *, train: bool = False) -> Doubled:
        """What the objective compares, of an image and of every second and every fourth pixel of it."""
        divisor = 4 * self.image_tower.patch
        if any(side % divisor for side in image.shape[1:3]):
            raise UserError(
                f"a quarter of an image of {image.shape[1]}x{image.shape[2]} is not made of patches of "
                f"{self.image_tower.patch}; set augment.size to a multiple of {divisor}."
            )
        images = [image[:, ::step, ::step] for step in (1, 2, 4)]
        grids = [self._grid(self._tower(one), one) for one in images]
        lift = Lift(self.dtype, name="lift")
        found = tuple(lift(grid, one, batch=train) for grid, one in zip(grids[1:], images[1:], strict=True))
        return Doubled(found, tuple(grids[:-1]), tuple(grids[1:]))

    def _grid(self, found: Features, image: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` of the tower's tokens."""
        tower = self.image_tower
        rows, columns = grid_of(image.shape[1], image.shape[2], tower.patch)
        grid = found.tokens[:, found.tokens.shape[1] - rows * columns :]
        return grid.reshape(grid.shape[0], rows, columns, -1)

    def _tower(self, image: jax.Array) -> Features:
        """The tower's features, without a gradient."""
        tower = self.image_tower
        fixed = {"stem": None, "reduce": None, "patches": (), "scales": (1.0,)}
        if unlike := [name for name, value in fixed.items() if getattr(tower, name) != value]:
            raise UserError(
                f"features to be doubled are one token for each patch; leave the tower's {' and '.join(unlike)} out."
            )
        if tower.patch < 4 or tower.patch & (tower.patch - 1):
            raise UserError(
                f"the image is halved until it fits the grid, and patches of {tower.patch} pixels are no power of 2 "
                "from 4 on; take a tower with patch=8 or 16."
            )
        if self.is_initializing():  # parameters are those of ``side``, whatever the image
            tower.features(jnp.zeros((1, self.side, self.side, image.shape[-1])))
        resize = functools.partial(self._resized, image.shape[1], image.shape[2])
        run = nn.map_variables(lambda tower, image: tower.features(image), "params", resize)
        return jax.lax.stop_gradient(run(tower, image))

    def _resized(self, height: int, width: int, variables: Any) -> Any:
        """The tower's variables with learned positions of the grid of such an image."""
        tower = self.image_tower
        if tower.positions != "learn" or tower.position_grid is not None:
            return variables
        old, new = self.side // tower.patch, grid_of(height, width, tower.patch)
        if new == (old, old):
            return variables
        table = nn.unbox(variables["params"]["position"]["embedding"])
        prefix = table.shape[1] - old * old
        grid = table[0, prefix:].reshape(old, old, -1)
        rows, columns = (resize_matrix(old, n) for n in new)
        grid = along_both(rows, columns, grid).reshape(1, new[0] * new[1], -1)
        position = {"embedding": jnp.concatenate([table[:, :prefix], grid], axis=1)}
        return {**variables, "params": {**variables["params"], "position": position}}
