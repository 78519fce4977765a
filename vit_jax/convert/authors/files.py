"""What files of papers' own code share: there is nothing beside the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from vit_jax.convert.format import Codec, Reading
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.rules import Rule
from vit_jax.data.framing import Framing
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.types import UserError

MEAN, STD, CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875
Fields = Callable[[Tensors], tuple[dict[str, Any], int, str]]
"""What a family makes of its tensors: fields of a model, side of its images in pixels, and what was assumed."""


def codec(
    paper: str,
    matches: Callable[[Any], bool],
    fields: Fields,
    rules: Callable[[Any], list[Rule]],
) -> Codec:
    """The codec of a family that is read alone.

    Args:
      paper: whose code it is, for errors.
      matches: as of the codec.
      fields: of a model.
      rules: as of the codec, there is one layout.
    """

    def read(theirs: Tensors, about: About) -> Reading:
        model, size, assumed = fields(theirs)
        images = Preprocess(size, CROP, "bicubic", MEAN, STD, frame=Framing(rounding="torchvision"))
        note = f"nothing but tensors is there: {assumed}, and images of ImageNet's mean, crop {CROP:g}, are assumed"
        return Reading(model, images, notes=(note,))

    def none(*_: Any) -> NoReturn:
        raise UserError(f"{paper}'s code is no package that could be installed; there is nothing to compare with.")

    return Codec((), matches, read, lambda model, layout: rules(model), none, none)
