"""Stitchable networks (SN-Net, Pan et al. 2023, arXiv:2302.06586): anchors that go over into wider ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from vit_jax import config
from vit_jax.checks import Range
from vit_jax.layers.linear import DType, Linear
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.images import IMAGES
from vit_jax.models.roles import Part
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

Anchor = Annotated[ViT, config.Choice(IMAGES, ViT)]
ANCHORS = ("first", "second", "third")
ALIKE = ("depth", "patch", "patches", "pool", "cls_token", "distilled", "registers")
"""Fields of anchors by which the tokens of one are those of another, block by block."""


def check_anchor(model: Any, source: str) -> None:
    """Raises :class:`UserError` where ``model`` can be no anchor."""
    if not isinstance(model, ViT):
        raise UserError(f"{source} is a {type(model).__name__}, and anchors are ViTs.")


class Route(NamedTuple):
    """A way through the anchors.

    Attributes:
      start: number of the anchor that it starts in, from 0.
      front: the last block there; None where it stays in that anchor.
      back: the block of the next anchor that it goes on with.
      window: number of the map between them, of those between these two anchors.
    """

    start: int
    front: int | None = None
    back: int = 0
    window: int = 0


def routes(anchors: int, depth: int, kernel: int) -> tuple[Route, ...]:
    """Every anchor alone, and after each its stitches to the next, those that stay in it longest first.

    Windows of ``kernel`` neighbouring blocks slide over the depth, and each block of a window is stitched to each
    (section 3.2); where windows overlap the first counts. With ``kernel=2`` that is ``3 * depth - 2`` stitches.
    """
    found: list[Route] = []
    for start in range(anchors):
        found.append(Route(start))
        if start + 1 == anchors:
            break
        for i in reversed(range(depth)):
            near = range(max(0, i - kernel + 1), min(depth, i + kernel))
            found += [Route(start, i, j, max(0, max(i, j) - kernel + 1)) for j in reversed(near)]
    return tuple(found)


class Stitches(nn.Module):
    """Maps from the tokens of one anchor to those of the next, one for each window: ``map_0`` ...

    Attributes:
      width: channels of the next anchor.
      windows: how many there are.
      dtype: compute type; parameters are float32.
    """

    width: int
    windows: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, window: int) -> jax.Array:
        """``[B, N, C] -> [B, N, D]``."""
        needed = range(self.windows) if self.is_initializing() else (window,)
        made = {i: Linear(self.width, ("embed", None), dtype=self.dtype, name=f"map_{i}")(x) for i in needed}
        return made[window]


class Stitched(ImageModel):
    """Two or three ViTs and linear maps from blocks of each to blocks of the next wider one.

    A form runs the first blocks of an anchor, a map of all its tokens, and the last blocks and the head of the next.
    :func:`vit_jax.compress.stitch.stitch` makes one of trained anchors, with the maps of least squares.

    Attributes:
      first: the narrowest anchor; a row of ``models.IMAGES``, and so are the others.
      second: the next.
      third: the widest; None for two anchors.
      kernel: blocks in a window, of which each is stitched to each.
      dtype: compute type of all anchors; parameters are float32, logits too.
      stitch: number of the form, as :func:`routes` counts; None: the last anchor alone, and the objective ``drawn``
        trains one of all at each step.
    """

    first: Anchor = ViT()
    second: Anchor = ViT(width=384, heads=6, mlp_dim=1536)
    third: Anchor | None = None
    kernel: Annotated[int, Range(1, 8)] = 2
    dtype: DType = "float32"
    stitch: Annotated[int, Range(0, 2**16)] | None = None

    PARTS: ClassVar[Mapping[str, Part]] = {**ImageModel.PARTS, "stitches_first": "head", "stitches_second": "head"}
    NEW: ClassVar[tuple[str, ...]] = (*ImageModel.NEW, "stitches_*")

    def __post_init__(self) -> None:
        for name in ANCHORS:
            anchor = getattr(self, name)
            if anchor is not None and (anchor.num_classes, anchor.dtype) != (self.num_classes, self.dtype):
                anchor = anchor.clone(num_classes=self.num_classes, dtype=self.dtype)
                object.__setattr__(self, name, anchor)
        super().__post_init__()

    @property
    def anchors(self) -> list[ViT]:
        """Narrowest first."""
        return [anchor for anchor in (self.first, self.second, self.third) if anchor is not None]

    @property
    def routes(self) -> tuple[Route, ...]:
        """All forms.

        Raises:
          UserError: the anchors are not alike, or there is none of that number.
        """
        one = self.anchors[0]
        for name, other in zip(ANCHORS[1:], self.anchors[1:], strict=False):
            if unlike := [f for f in ALIKE if getattr(one, f) != getattr(other, f)]:
                ours, theirs = (", ".join(f"{f}={getattr(a, f)!r}" for f in unlike) for a in (one, other))
                raise UserError(
                    f"anchors are stitched block by block and token by token: the first has {ours}, the {name} "
                    f"{theirs}; take ViTs that differ in width alone, such as vit_ti16 and vit_s16."
                )
        if any(anchor.reduce is not None or anchor.scales != (1,) for anchor in self.anchors):
            raise UserError("anchors go over into each other token by token; set their reduce=None and scales=(1,).")
        found = routes(len(self.anchors), one.depth, min(self.kernel, one.depth))
        if self.stitch is not None and self.stitch >= len(found):
            raise UserError(f"stitch={self.stitch} is no form of these anchors; the last is {len(found) - 1}.")
        return found

    def forms(self) -> dict[str, Stitched]:
        numbers = reversed(range(len(self.routes))) if self.stitch is None else ()
        return {f"stitch_{i}": self.clone(stitch=i) for i in numbers}

    @property
    def route(self) -> Route:
        """The form that it is."""
        found = self.routes
        return found[-1 if self.stitch is None else self.stitch]

    def encode(self, image: jax.Array, train: bool) -> Features:
        route, anchors = self.route, self.anchors
        if self.is_initializing():
            return self._all(image)[self._end(route)]
        if train and self.stitch is None:
            raise UserError("a step trains one stitch; set objective='drawn(classify)', or model.stitch to its number.")
        if route.front is None:
            return anchors[route.start].features(image, train=train)
        front, back = anchors[route.start : route.start + 2]
        tokens, grid = front.embed(image, train)
        tokens = front.encode_tokens(tokens, train, front.coordinates(*grid), blocks=range(route.front + 1))
        x = self._map(route.start, tokens, route.window)
        x = back.encode_tokens(x, train, back.coordinates(*grid), blocks=range(route.back, back.depth))
        return Features(x, back.pooled(x))

    def classify(self, found: Features) -> jax.Array:
        return self.anchors[self._end(self.route)].classify(found)

    def _prefix(self) -> int:
        return self.first._prefix()

    def _end(self, route: Route) -> int:
        """Number of the anchor whose head answers."""
        return route.start + (route.front is not None)

    def _all(self, image: jax.Array) -> list[Features]:
        """Of every anchor, with all parameters made, whichever form this is."""
        found = [anchor.features(image) for anchor in self.anchors]
        for start, (anchor, one) in enumerate(zip(self.anchors, found, strict=True)):
            if self.num_classes:
                anchor.classify(one)
            if start + 1 < len(found):
                self._map(start, one.tokens, 0)
        return found

    def _map(self, start: int, x: jax.Array, window: int) -> jax.Array:
        after = self.anchors[start + 1]
        windows = after.depth - min(self.kernel, after.depth) + 1
        return Stitches(after.width, windows, after.dtype, name=f"stitches_{ANCHORS[start]}")(x, window)
