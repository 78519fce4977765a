"""Image models by name; the towers of image-text models are among them."""

from __future__ import annotations

from vit_jax import architectures
from vit_jax.config import Variant
from vit_jax.models.convnext import ConvNeXt
from vit_jax.models.hornet import HorNet
from vit_jax.models.mamba_mixer import MambaMixer
from vit_jax.models.mixer import Mixer
from vit_jax.models.mobilenet import MobileNet
from vit_jax.models.monarch_mixer import MonarchMixer
from vit_jax.models.nf_resnet import NFResNet
from vit_jax.models.vim import Vim
from vit_jax.models.vit import ViT

IMAGE_MODELS: dict[str, Variant] = {
    "vit": Variant(ViT),
    "mixer": Variant(Mixer),
    "monarch_mixer": Variant(MonarchMixer),
    "vim": Variant(Vim),
    "mamba_mixer": Variant(MambaMixer),
    "convnext": Variant(ConvNeXt),
    "hornet": Variant(HorNet),
    "nf_resnet": Variant(NFResNet),
    "mobilenet": Variant(MobileNet),
    **{name: Variant(ViT, fields) for name, fields in architectures.VIT.items()},
    **{name: Variant(ViT, fields) for name, fields in architectures.MODERN.items()},
    **{name: Variant(Mixer, fields) for name, fields in architectures.MIXER.items()},
    **{name: Variant(MonarchMixer, fields) for name, fields in architectures.MONARCH_MIXER.items()},
    **{name: Variant(Vim, fields) for name, fields in architectures.VIM.items()},
    **{name: Variant(ConvNeXt, fields) for name, fields in architectures.CONVNEXT.items()},
    **{name: Variant(HorNet, fields) for name, fields in architectures.HORNET.items()},
    **{name: Variant(NFResNet, fields) for name, fields in architectures.NF_RESNET.items()},
    **{name: Variant(MobileNet, fields) for name, fields in architectures.MOBILENET.items()},
}
"""Name -> class with the variant's fields."""

IMAGES: dict[str, Variant] = IMAGE_MODELS | {a: IMAGE_MODELS[name] for a, name in architectures.IMAGE_ALIASES.items()}
"""Everything that is accepted as the name of an image model."""
