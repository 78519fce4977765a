"""Checkpoints: orbax underneath, asynchronous and atomic, the newest N and the best one kept.

A checkpoint is a folder ``checkpoints/<step>`` with the items ``params``, ``ema`` (where there is one), ``opt_state``
and ``meta`` (JSON: configuration, class names, provenance). Each is readable alone, so that evaluation never loads an
optimizer. Parameters are stored as the model's nested dictionary, other trees flat by path: neither depends on the
mesh.
``meta`` also holds a checksum of every array and of itself, because the storage format notices a lost file but not a
flipped bit.
"""

from vit_jax.checkpoint.places import BEST, FOLDER, find, kept, sign, steps
from vit_jax.checkpoint.reading import Check, best, load_params, metrics_of, read_item, restore
from vit_jax.checkpoint.schema import META, SCHEMA, NewerSchema, Unsuitable
from vit_jax.checkpoint.sums import checksums, text_sum
from vit_jax.checkpoint.writing import Checkpoints

__all__ = [
    "BEST", "FOLDER", "META", "SCHEMA", "Check", "Checkpoints", "NewerSchema", "Unsuitable", "best", "checksums",
    "find", "kept", "load_params", "metrics_of", "read_item", "restore", "sign", "steps", "text_sum",
]  # fmt: skip
