"""The ``.npz`` files of google-research/big_vision: ViT, Mixer, SigLIP, LiT; plus ``vit_jax.json``.

Source: ``utils.py`` (``load_params``), ``models/vit.py`` and ``models/mlp_mixer.py`` there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from vit_jax.convert.flax import npz, two_tower
from vit_jax.convert.flax.image import COMPUTES, about, prefix_of
from vit_jax.convert.flax.rules import POSITIONS, Layout
from vit_jax.convert.flax.two_tower import Towers
from vit_jax.convert.format import Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensors
from vit_jax.models import ImageModel, ViT

TITLE = "big_vision"
LAYOUT = Layout("params/", (0, 1, 0), POSITIONS[1], cls_position=False)
"""What big_vision saves; its ``load_params`` also takes it without the prefix, its ViT also with scanned blocks."""


def matches(names: Collection[str]) -> bool:
    """Whether an image model is big_vision's: a Flax tree that is not the original's."""
    return prefix_of(names) is not None and not npz.matches(names)


def matches_towers(names: Collection[str]) -> bool:
    """Whether an image-text model is big_vision's."""
    return two_tower.prefix_of(names) is not None and not npz.matches_towers(names)


def write(pretrained: Stored) -> Writing:
    """The layout of big_vision's own files, one tensor per layer.

    Raises:
      UserError: big_vision has no such model.
    """
    return Writing(LAYOUT, about(pretrained), tuple(_image(pretrained.model, pretrained.params)))


def write_towers(pretrained: Stored) -> Writing:
    """As :func:`write`, of an image-text model."""
    model = pretrained.model
    towers = Towers(LAYOUT.prefix, dataclasses.replace(LAYOUT, prefix=""), Layout(numbers=LAYOUT.numbers))
    notes = [*_image(model.image_tower, pretrained.params, "image_tower/")]
    notes += npz.differences(model.text_tower, COMPUTES, TITLE)
    writing = two_tower.write(pretrained, towers, TITLE)
    return dataclasses.replace(writing, notes=(*writing.notes, *notes))


def _image(model: ImageModel, params: Tensors, where: str = "") -> Iterator[str]:
    """What is otherwise in big_vision's models of images, one note each; raises where it has no such model."""
    npz.check(model, TITLE, TITLE)
    position = params.get(f"{where}position/embedding")
    if position is not None and isinstance(model, ViT) and model.pool == "cls" and position.read()[:, 0].any():
        yield f"{TITLE} has no position for the class token: ours is added to the token, which is the same"
    yield from npz.differences(model, COMPUTES, TITLE)


IMAGES = dataclasses.replace(npz.IMAGES, matches=matches, write=write)
TOWERS = dataclasses.replace(npz.TOWERS, matches=matches_towers, write=write_towers)
