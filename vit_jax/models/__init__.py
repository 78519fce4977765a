"""Models by name: ``create("vit_b16", num_classes=10, dtype="bfloat16")``."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any

from vit_jax import config
from vit_jax.config import Variant
from vit_jax.models import coca, images, mixer, two_tower, vit
from vit_jax.models.base import (
    Captioner,
    Features,
    ImageModel,
    ImageTextModel,
    ModelFn,
    Variables,
    cast_kernels,
    replace_in_towers,
)
from vit_jax.models.coca import CoCa
from vit_jax.models.images import IMAGE_MODELS, IMAGES
from vit_jax.models.mixer import Mixer
from vit_jax.models.monarch_mixer import MonarchMixer
from vit_jax.models.roles import Model, Role
from vit_jax.models.text import TextTransformer
from vit_jax.models.two_tower import Embedded, TwoTower
from vit_jax.models.vit import ViT

__all__ = [
    "ALIASES", "FAMILIES", "IMAGES", "MODELS", "NAMES", "Captioner", "CoCa", "Embedded", "Features", "ImageModel",
    "ImageTextModel", "Mixer", "Model", "ModelFn", "MonarchMixer", "Role", "TextTransformer", "TwoTower", "Variables",
    "ViT", "cast_kernels", "create", "mixer", "names", "replace_in_towers", "vit",
]  # fmt: skip

MODELS: dict[str, Variant] = {
    **IMAGE_MODELS,
    "two_tower": Variant(TwoTower),
    "coca": Variant(CoCa),
    **{name: Variant(TwoTower, fields) for name, fields in two_tower.VARIANTS.items()},
    **{name: Variant(CoCa, fields) for name, fields in coca.VARIANTS.items()},
}
"""Name -> class with the variant's fields."""

FAMILIES = ("vit", "mixer", "monarch_mixer", "two_tower", "coca")
"""The names that are no size of anything yet."""

OPEN_CLIP = {
    "ViT-B-32": "clip_vit_b32",
    "ViT-B-16": "clip_vit_b16",
    "ViT-L-14": "clip_vit_l14",
    "ViT-B-16-SigLIP": "siglip_vit_b16",
    "ViT-L-16-SigLIP-256": "siglip_vit_l16",
    "ViT-SO400M-14-SigLIP": "siglip_vit_so400m14",
    "coca_ViT-B-32": "coca_vit_b32",
    "coca_ViT-L-14": "coca_vit_l14",
}
"""Names of open_clip -> our names."""

ALIASES: dict[str, str] = images.ALIASES | OPEN_CLIP
"""Names of the original repository (``ViT-B_16``, ``B/16``, ``R50+ViT-L_32``), of timm and open_clip -> our names."""

NAMES: dict[str, Variant] = MODELS | {alias: MODELS[name] for alias, name in ALIASES.items()}
"""Everything that is accepted as a name: the ``Choice`` table for a configuration's model field."""

_CHOICE = Annotated[Any, config.Choice(NAMES, Model)]


def create(name: str, **overrides: Any) -> Any:
    """The model ``name`` of :data:`NAMES` with fields overridden.

    Raises:
      UsageError: unknown name or field (with the nearest ones) or a value of the wrong type.
    """
    return config.parse(_CHOICE, {**overrides, "name": name}, "model")


def names(pattern: str = "*") -> list[str]:
    """The models of :data:`MODELS` that have a size, those that ``pattern`` (``"vit_*"``) matches, in their order."""
    return [name for name in MODELS if name not in FAMILIES and fnmatch.fnmatchcase(name, pattern)]
