"""timm (https://github.com/huggingface/pytorch-image-models): models of images alone."""

from vit_jax.convert.format import Format
from vit_jax.convert.timm import convnext, eva, mixer, mobilenet, naflex, nf_resnet, vit

FAMILIES = (mixer, convnext, nf_resnet, mobilenet, eva, naflex, vit)
FORMAT = Format("timm", "timm", ".safetensors", "bicubic", tuple(family.CODEC for family in FAMILIES))
