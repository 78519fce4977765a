"""Image models by name; the towers of image-text models are among them."""

from __future__ import annotations

from vit_jax.config import Variant
from vit_jax.models import mixer, monarch_mixer, vit
from vit_jax.models.mixer import Mixer
from vit_jax.models.monarch_mixer import MonarchMixer
from vit_jax.models.vit import ViT

IMAGE_MODELS: dict[str, Variant] = {
    "vit": Variant(ViT),
    "mixer": Variant(Mixer),
    "monarch_mixer": Variant(MonarchMixer),
    **{name: Variant(ViT, fields) for name, fields in vit.VARIANTS.items()},
    **{name: Variant(Mixer, fields) for name, fields in mixer.VARIANTS.items()},
    **{name: Variant(MonarchMixer, fields) for name, fields in monarch_mixer.VARIANTS.items()},
}
"""Name -> class with the variant's fields."""


TIMM_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "G": "gigantic"}
TIMM_PIXELS = (224, 384, 448, 512, 518)
"""Sides of the image that timm's names end in; the models are the same but for their number of positions."""
HYBRIDS = {
    "vit_r_ti16": ("R+ViT-Ti/16", "vit_tiny_r_s16_p8"),
    "vit_r26_s32": ("R26+ViT-S/32", "vit_small_r26_s32"),
    "vit_r26_b32": ("R26+ViT-B/32", "vit_base_r26_s32"),
    "vit_r50_b16": ("R50+ViT-B/16", "vit_base_r50_s16"),
    "vit_r50_l32": ("R50+ViT-L/32", "vit_large_r50_s32"),
}
"""Our name -> the original repository's and timm's."""


def _aliases() -> dict[str, str]:
    out: dict[str, str] = {}
    names = dict(HYBRIDS)
    for size, patches in vit.PATCHES.items():
        original, theirs = size if size in "gG" else size.capitalize(), TIMM_SIZES.get(size, size)
        names |= {f"vit_{size}{p}": (f"ViT-{original}/{p}", f"vit_{theirs}_patch{p}") for p in patches}
    for name, (original, theirs) in names.items():
        for form in (original, original.replace("ViT-", "")):
            flat = form.replace("/", "_")
            out |= {form: name, flat: name, flat.replace("+", "_"): name}
        out |= {f"{theirs}_{pixels}": name for pixels in TIMM_PIXELS}
    for name in mixer.VARIANTS:
        size, patch = name[6], name[7:]
        out |= {f"Mixer-{size.upper()}{sep}{patch}": name for sep in "/_"} | {f"mixer_{size}{patch}_224": name}
    return out


ALIASES: dict[str, str] = _aliases()
"""Names of the original repository (``ViT-B_16``, ``B/16``, ``R50+ViT-L_32``) and of timm -> our names."""


IMAGES: dict[str, Variant] = IMAGE_MODELS | {a: IMAGE_MODELS[name] for a, name in ALIASES.items()}
"""Everything that is accepted as the name of an image model."""
