"""Hugging Face transformers: CLIP, SigLIP and their image towers; ViT and DINOv2, bare or with a classifier."""

from vit_jax.convert.format import Format
from vit_jax.convert.hf import clip, tower, vit

CODECS = (clip.CODEC, vit.CODEC, tower.CODEC)
FORMAT = Format("hf", "Hugging Face transformers", ".safetensors", "bicubic_plain", CODECS)
