"""The formats of weights, by the names that the user writes."""

from __future__ import annotations

from vit_jax.convert import flax, hf, open_clip, run_folder, timm
from vit_jax.convert.format import Format

FORMATS: dict[str, Format] = {
    fmt.name: fmt for fmt in (timm.FORMAT, open_clip.FORMAT, hf.FORMAT, flax.ORIGINAL, flax.BIG_VISION)
}
"""Formats of others, by the name that the user writes; ours is :mod:`.run_folder`."""
TARGETS = {**FORMATS, run_folder.NAME: None}
FILES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".onnx")
"""Suffixes of files of weights; a target with another one is a folder."""
