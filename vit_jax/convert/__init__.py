"""Weights in from everywhere and out to everywhere: one table of rules per format, applied in both directions."""

from vit_jax.convert.formats import FORMATS
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Pretrained, Stored
from vit_jax.convert.read import load
from vit_jax.convert.write import save

__all__ = ["FORMATS", "Preprocess", "Pretrained", "Stored", "load", "save"]
