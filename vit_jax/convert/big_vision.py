"""The ``.npz`` files of google-research/big_vision: ViT, Mixer; plus ``vit_jax.json``.

Source: ``utils.py`` (``load_params``), ``models/vit.py`` and ``models/mlp_mixer.py`` there.
"""

from __future__ import annotations

from collections.abc import Collection

from vit_jax.convert import npz
from vit_jax.convert.base import Format, Pretrained, Writing
from vit_jax.convert.flax_read import COMPUTES, about, prefix_of, read
from vit_jax.convert.flax_tree import POSITIONS, Layout, rules
from vit_jax.convert.npz_peer import peer

TITLE = "big_vision"
LAYOUT = Layout("params/", (0, 1, 0), POSITIONS[1], cls_position=False)
"""What big_vision saves; its ``load_params`` also takes it without the prefix, its ViT also with scanned blocks."""


def matches(names: Collection[str]) -> bool:
    """Whether the file is big_vision's: a Flax tree that is not the original's."""
    return prefix_of(names) is not None and not npz.matches(names)


def write(pretrained: Pretrained) -> Writing:
    """The layout of big_vision's own files, one tensor per layer.

    Raises:
      UserError: big_vision has no such model.
    """
    model, notes = pretrained.model, []
    npz.check(model, TITLE, TITLE)
    position = pretrained.params.get("position/embedding")
    if position is not None and getattr(model, "pool", None) == "cls" and position.read()[:, 0].any():
        notes += [f"{TITLE} has no position for the class token: ours is added to the token, which is the same"]
    notes += npz.differences(model, COMPUTES, TITLE)
    return Writing(LAYOUT, about(pretrained), tuple(notes))


FORMAT = Format(TITLE, TITLE, ".npz", "bilinear_corners", matches, read, rules, write, peer)
