"""Models by name: ``create("vit_b16", num_classes=10, dtype="bfloat16")``."""

from __future__ import annotations

from typing import Annotated, Any

from vit_jax import architectures, config
from vit_jax.architectures import ALIASES, names
from vit_jax.config import Variant
from vit_jax.models.base import (
    Captioner,
    Features,
    ImageModel,
    ImageTextModel,
    ModelFn,
    Upsampler,
    Variables,
    cast_kernels,
    portable,
    replace_in_towers,
)
from vit_jax.models.coca import CoCa
from vit_jax.models.composed.lift import LiFT
from vit_jax.models.composed.stitched import Stitched
from vit_jax.models.convnext import ConvNeXt
from vit_jax.models.hornet import HorNet
from vit_jax.models.images import IMAGE_MODELS, IMAGES
from vit_jax.models.mamba_mixer import MambaMixer
from vit_jax.models.mixer import Mixer
from vit_jax.models.mobilenet import MobileNet
from vit_jax.models.monarch_mixer import MonarchMixer
from vit_jax.models.nf_resnet import NFResNet
from vit_jax.models.roles import Model, Role
from vit_jax.models.text import TextTransformer
from vit_jax.models.two_tower import Embedded, TwoTower
from vit_jax.models.vim import Vim
from vit_jax.models.vit import ViT

__all__ = [
    "ALIASES", "FAMILIES", "IMAGES", "MODELS", "NAMES", "Captioner", "CoCa", "ConvNeXt", "Embedded", "Features",
    "HorNet", "ImageModel", "ImageTextModel", "LiFT", "MambaMixer", "Mixer", "MobileNet", "Model", "ModelFn",
    "MonarchMixer", "NFResNet", "Role", "Stitched", "TextTransformer", "TwoTower", "Upsampler", "Variables", "ViT",
    "Vim", "cast_kernels", "create", "names", "portable", "replace_in_towers",
]  # fmt: skip

MODELS: dict[str, Variant] = {
    **IMAGE_MODELS,
    "two_tower": Variant(TwoTower),
    "coca": Variant(CoCa),
    "stitched": Variant(Stitched),
    "lift": Variant(LiFT),
    **{name: Variant(TwoTower, fields) for name, fields in architectures.TWO_TOWER.items()},
    **{name: Variant(CoCa, fields) for name, fields in architectures.COCA.items()},
}
"""Name -> class with the variant's fields."""

FAMILIES = (
    "vit", "mixer", "monarch_mixer", "vim", "mamba_mixer", "convnext", "hornet", "nf_resnet", "mobilenet", "two_tower",
    "coca", "stitched", "lift",
)  # fmt: skip
"""The names that are no size of anything yet."""

NAMES: dict[str, Variant] = MODELS | {alias: MODELS[name] for alias, name in ALIASES.items()}
"""Everything that is accepted as a name: the ``Choice`` table for a configuration's model field."""

_CHOICE = Annotated[Any, config.Choice(NAMES, Model)]


def create(name: str, **overrides: Any) -> Any:
    """The model ``name`` of :data:`NAMES`, or ``"name(field=value)"``, with fields overridden.

    Raises:
      UsageError: unknown name or field (with the nearest ones) or a value of the wrong type.
    """
    return config.parse(_CHOICE, {**config.spec_fields(name, NAMES, "model"), **overrides}, "model")
