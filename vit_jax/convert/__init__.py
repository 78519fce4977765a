"""Weights in from everywhere and out to everywhere: one table of rules per format, applied in both directions."""

from vit_jax.convert.base import Preprocess, Pretrained, Stored
from vit_jax.convert.store import FORMATS, load, save

__all__ = ["FORMATS", "Preprocess", "Pretrained", "Stored", "load", "save"]
