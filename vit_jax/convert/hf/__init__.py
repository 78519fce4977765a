"""Hugging Face transformers: CLIP, MetaCLIP 2, SigLIP and their image towers; ViT and DINOv2, DINOv3."""

from vit_jax.convert.format import Format
from vit_jax.convert.hf import clip, clip_rules, dinov3, tower, vit, vit_rules

CODECS = (clip.CODEC, dinov3.CODEC, vit.CODEC, tower.CODEC)
FORMAT = Format("hf", "Hugging Face transformers", ".safetensors", "bicubic_plain", CODECS)
FAMILIES = (*clip_rules.FAMILIES, *vit_rules.FAMILIES, dinov3.FAMILY)
"""What their ``config.json`` calls the models that are read, by ``model_type``."""
