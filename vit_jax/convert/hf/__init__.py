"""Hugging Face transformers: CLIP and SigLIP, and ViT, DINOv2 and DINOv2 with registers, bare or with a classifier."""

from vit_jax.convert.format import Format
from vit_jax.convert.hf import clip, vit

FORMAT = Format("hf", "Hugging Face transformers", ".safetensors", "bicubic_plain", (clip.CODEC, vit.CODEC))
