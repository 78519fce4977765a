"""timm (https://github.com/huggingface/pytorch-image-models): models of images alone."""

from vit_jax.convert.format import Format
from vit_jax.convert.timm import convnext, eva, mixer, vit

FORMAT = Format("timm", "timm", ".safetensors", "bicubic", (mixer.CODEC, convnext.CODEC, eva.CODEC, vit.CODEC))
