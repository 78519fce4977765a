"""The ``.npz`` files of google-research/vision_transformer and of google-research/big_vision."""

from vit_jax.convert.flax import big_vision, npz
from vit_jax.convert.format import Format

ORIGINAL = Format("npz", npz.TITLE, ".npz", "bilinear_corners", (npz.TOWERS, npz.IMAGES))
BIG_VISION = Format("big_vision", big_vision.TITLE, ".npz", "bilinear_corners", (big_vision.TOWERS, big_vision.IMAGES))
