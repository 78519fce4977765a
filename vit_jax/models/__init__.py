"""Models by name: ``create("vit_b16", num_classes=10, dtype="bfloat16")``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

from vit_jax import config
from vit_jax.models import mixer, vit
from vit_jax.models.base import Features, ImageModel, cast_kernels
from vit_jax.models.mixer import Mixer
from vit_jax.models.vit import ViT

__all__ = ["ALIASES", "MODELS", "NAMES", "Features", "ImageModel", "Mixer", "ViT", "cast_kernels", "create"]

MODELS: dict[str, Callable[..., ImageModel]] = {
    "vit": functools.partial(ViT),
    "mixer": functools.partial(Mixer),
    **{name: functools.partial(ViT, **fields) for name, fields in vit.VARIANTS.items()},
    **{name: functools.partial(Mixer, **fields) for name, fields in mixer.VARIANTS.items()},
}
"""Name -> class with the variant's fields."""


def _aliases() -> dict[str, str]:
    out: dict[str, str] = {}
    timm_sizes = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "G": "gigantic"}
    for name in vit.VARIANTS:
        parts = name.split("_")[1:]
        size, patch = parts[-1].rstrip("0123456789"), parts[-1].lstrip("tisblhgG")
        original = f"{size if size in 'gG' else size.capitalize()}/{patch}"
        stem = parts[0].upper() if len(parts) == 2 else ""
        original = f"{stem}+ViT-{original}" if stem else f"ViT-{original}"
        for form in (original, original.replace("ViT-", "")):
            flat = form.replace("/", "_")
            out |= {form: name, flat: name, flat.replace("+", "_"): name}
        if not stem:
            out[f"vit_{timm_sizes[size]}_patch{patch}_224"] = name
    out |= {
        "vit_tiny_r_s16_p8_224": "vit_r_ti16",
        "vit_small_r26_s32_224": "vit_r26_s32",
        "vit_base_r26_s32_224": "vit_r26_b32",
        "vit_base_r50_s16_224": "vit_r50_b16",
        "vit_large_r50_s32_224": "vit_r50_l32",
    }
    for name in mixer.VARIANTS:
        size, patch = name[6], name[7:]
        out |= {f"Mixer-{size.upper()}{sep}{patch}": name for sep in "/_"} | {f"mixer_{size}{patch}_224": name}
    return out


ALIASES: dict[str, str] = _aliases()
"""Names of the original repository (``ViT-B_16``, ``B/16``, ``R50+ViT-L_32``) and of timm -> our names."""


NAMES: dict[str, Callable[..., ImageModel]] = MODELS | {alias: MODELS[name] for alias, name in ALIASES.items()}
"""Everything that is accepted as a name: the ``Choice`` table for a configuration's model field."""

_CHOICE = Annotated[ImageModel, config.Choice(NAMES)]


def create(name: str, **overrides: Any) -> ImageModel:
    """The model ``name`` of :data:`NAMES` with fields overridden.

    Raises:
      UsageError: unknown name or field (with the nearest ones) or a value of the wrong type.
    """
    return config.parse(_CHOICE, {**overrides, "name": name}, "model")
