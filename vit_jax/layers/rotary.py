"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of channels of queries and keys turn with the place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.checks import Checked, Positive, Size
from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.layers.hooks import Rotary
from vit_jax.layers.linear import logical
from vit_jax.types import Array, UserError


@dataclasses.dataclass(frozen=True)
class Rope(Checked):
    """Along every axis alike: of E channels and A axes, pair i of an axis turns by ``base ** (-2 A i / E)`` a unit.

    The first pairs turn with the first axis, the next with the second. Logits depend on differences of coordinates
    alone. Tokens without coordinates (cls, registers) do not turn.

    Attributes:
      base: of the wavelengths; 100 in DINOv3 (Siméoni et al. 2025, arXiv:2508.10104), 10,000 in EVA-02 (Fang et al.
        2023, arXiv:2303.11331).
      layout: which channels are a pair: the i-th of either "half" (DINOv3), or two neighbours ("interleaved", EVA-02).
      grid: coordinates of patches. "unit": their centres, on an image from -1 to 1 whatever its size, times 2 pi
        (DINOv3); "index": row and column; a number: these, scaled to a grid of so many rows and columns (EVA-02: 16).
      axes: which comes first, rows ("yx") or columns ("xy", Heo et al. 2024, arXiv:2403.13298).
    """

    base: Positive = 100.0
    layout: Literal["half", "interleaved"] = "half"
    grid: Literal["unit", "index"] | Size = "unit"
    axes: Literal["yx", "xy"] = "yx"

    def __call__(self, *, name: str) -> Callable[[jax.Array, jax.Array, Array], tuple[jax.Array, jax.Array]]:
        return self.rotate

    def coordinates(self, height: int, width: int) -> np.ndarray:
        sides = np.asarray([[height, width]], np.float64)
        at = np.indices((height, width)).reshape(2, -1).T.astype(np.float64)
        if self.grid == "unit":
            at = 2 * np.pi * (2 * (at + 0.5) / sides - 1)
        elif self.grid != "index":
            at *= self.grid / sides
        return (at if self.axes == "yx" else at[:, ::-1]).astype(np.float32)

    def rotate(self, q: jax.Array, k: jax.Array, at: Array) -> tuple[jax.Array, jax.Array]:
        """``q, k [B, N, K, E]``, the last P tokens of which are at ``[P, A]``, turned: in float32, in their type.

        Raises:
          UserError: a head's channels do not make pairs for every axis.
        """
        rotation = self.rotation(at, q.shape[1], q.shape[-1])
        return rotation(q), rotation(k)

    def rotation(self, at: Array, tokens: int, size: int) -> Rotation:
        """As :meth:`rotate`, of heads of ``size`` channels."""
        places, axes = at.shape
        pairs = _pairs(size, axes)
        rates = jnp.asarray(self.base ** -(np.arange(pairs) / pairs), jnp.float32)
        angle = (jnp.asarray(at)[:, :, None] * rates[None, None]).reshape(places, -1)
        return Rotation.of(angle, tokens, neighbours=self.layout == "interleaved")


class MixedRotation(nn.Module):
    """See :class:`RopeMixed`; ``frequencies [2, K, E / 2]``, of either axis, every head and pair.

    Attributes:
      base: of the wavelengths at the start.
    """

    base: float

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, at: Array) -> tuple[jax.Array, jax.Array]:
        """``q, k [B, N, K, E]``, the last P tokens of which are at ``[P, 2]``, turned: in float32, in their type.

        Raises:
          UserError: a head's channels do not make pairs for both axes.
        """
        tokens, heads, size = q.shape[1:]
        pairs = _pairs(size, 2)

        def start(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            angle = jax.random.uniform(key, (heads, 1), maxval=2 * np.pi)
            rates = jnp.asarray(self.base ** -(np.arange(pairs) / pairs), jnp.float32)[None]
            both = [jnp.concatenate([rates * f(angle), rates * f(angle + np.pi / 2)], -1) for f in (jnp.cos, jnp.sin)]
            return jnp.stack(both).astype(dtype).reshape(shape)

        frequencies = self.param("frequencies", logical(start, (None, "heads", None)), (2, heads, size // 2))
        angle = jnp.einsum("pa,akn->pkn", at, frequencies.astype(jnp.float32), precision="highest")
        rotation = Rotation.of(angle, tokens, neighbours=True)
        return rotation(q), rotation(k)


@dataclasses.dataclass(frozen=True)
class RopeMixed(Checked):
    """RoPE-Mixed (Heo et al. 2024, arXiv:2403.13298, section 3.2): pairs turn by both coordinates, at learned rates.

    Pair i of a head at row y and column x turns by ``f[0, i] x + f[1, i] y``; every block and head has rates of its own
    and starts from :class:`Rope`'s along two axes at right angles, in a direction that is drawn. Neighbouring channels
    are a pair, coordinates are counted in patches at any size of the images. The rates are not decayed. Coordinates
    that are moved in training, as timm's may be, are not here.

    Attributes:
      base: of the wavelengths at the start.
      axes: which coordinate the first rates are of, columns ("xy", as published) or rows ("yx").
    """

    base: Positive = 10.0
    axes: Literal["yx", "xy"] = "xy"

    def __call__(self, *, name: str) -> MixedRotation:
        return MixedRotation(self.base, name=name)

    def coordinates(self, height: int, width: int) -> np.ndarray:
        return Rope(grid="index", axes=self.axes).coordinates(height, width)


def _pairs(size: int, axes: int) -> int:
    """How many pairs of the channels of a head turn with each of the axes.

    Raises:
      UserError: they do not come out even.
    """
    if size % (2 * axes):
        raise UserError(f"{size} channels of a head are no pairs for {axes} axes of rope; choose other heads.")
    return size // (2 * axes)


ROTARIES = {"rope": Rope, "rope_mixed": RopeMixed}
RotarySpec = Annotated[Rotary, config.Choice(ROTARIES, Rotary)]
"""Type of a module's field that holds a :class:`~vit_jax.layers.hooks.Rotary`."""
