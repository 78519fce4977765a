"""The ``.npz`` files of google-research/big_vision: ViT, Mixer, SigLIP, LiT; plus ``vit_jax.json``.

Source: ``utils.py`` (``load_params``), ``models/vit.py`` and ``models/mlp_mixer.py`` there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

from vit_jax.convert.flax import npz, two_tower
from vit_jax.convert.flax.image import prefix_of
from vit_jax.convert.flax.rules import POSITIONS, Layout
from vit_jax.convert.flax.two_tower import Towers

TITLE = "big_vision"
LAYOUT = Layout("params/", (0, 1, 0), POSITIONS[1], cls_position=False)
"""What big_vision saves; its ``load_params`` also takes it without the prefix, its ViT also with scanned blocks."""


def matches(names: Collection[str]) -> bool:
    """Whether an image model is big_vision's: a Flax tree that is not the original's."""
    return prefix_of(names) is not None and not npz.matches(names)


def matches_towers(names: Collection[str]) -> bool:
    """Whether an image-text model is big_vision's."""
    return two_tower.prefix_of(names) is not None and not npz.matches_towers(names)


TOWER_LAYOUT = Towers(LAYOUT.prefix, dataclasses.replace(LAYOUT, prefix=""), Layout(numbers=LAYOUT.numbers))
IMAGES = dataclasses.replace(
    npz.IMAGES, matches=matches, write=functools.partial(npz.write, title=TITLE, layout=LAYOUT)
)
TOWERS = dataclasses.replace(
    npz.TOWERS, matches=matches_towers, write=functools.partial(npz.write_towers, title=TITLE, towers=TOWER_LAYOUT),
    limits=(*npz.LIMITS, *two_tower.LIMITS),
)  # fmt: skip
