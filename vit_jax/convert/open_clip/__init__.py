"""open_clip (https://github.com/mlfoundations/open_clip): models of images and texts."""

from vit_jax.convert.format import Format
from vit_jax.convert.open_clip import two_tower

WEIGHTS = "open_clip_model.safetensors"
FORMAT = Format("open_clip", "open_clip", ".safetensors", "bicubic", (two_tower.CODEC,), WEIGHTS)
