"""The formats of weights, by the names that the user writes."""

from __future__ import annotations

from vit_jax.convert import authors, flax, hf, open_clip, run_folder, timm
from vit_jax.convert.format import Format

FORMATS: dict[str, Format] = {
    fmt.name: fmt for fmt in (timm.FORMAT, open_clip.FORMAT, hf.FORMAT, flax.ORIGINAL, flax.BIG_VISION, authors.FORMAT)
}
"""Formats of others, by the name that the user writes; ours is :mod:`.run_folder`."""
TARGETS = {**{name: fmt for name, fmt in FORMATS.items() if fmt is not authors.FORMAT}, run_folder.NAME: None}
"""Those that are written."""
FILES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".onnx")
"""Suffixes of files of weights; a target with another one is a folder."""
