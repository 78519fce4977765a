"""The ``.npz`` files of google-research/vision_transformer: ViT, hybrids, Mixer; plus ``vit_jax.json``.

What the newer big_vision names otherwise is in :mod:`vit_jax.convert.big_vision`; Mixers are named alike in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vit_jax import config
from vit_jax.convert.base import Format, Pretrained, Writing
from vit_jax.convert.flax_read import COMPUTES, about, prefix_of, read, two_towers
from vit_jax.convert.flax_tree import POSITIONS, Layout, rules
from vit_jax.convert.npz_peer import build_peer, peer
from vit_jax.layers.linear import Dense
from vit_jax.models import ImageModel, ViT
from vit_jax.types import UserError

__all__ = ["FORMAT", "build_peer", "check", "differences", "matches", "write"]

TITLE = "the original repository"


def matches(names: Collection[str]) -> bool:
    """Whether the file is the original's, by what tells it from a newer one: positions, stem, numbering.

    Image-text models match too, for :func:`.flax_read.read` to say what they are.
    """
    if (prefix := prefix_of(names)) is None:
        return two_towers(names)
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if any(name.startswith("MixerBlock_") for name in own):
        return prefix == ""
    old = any("/MlpBlock_3/" in name for name in own) and own.isdisjoint(POSITIONS[1:])
    return POSITIONS[0] in own or "conv_root/kernel" in own or old


def write(pretrained: Pretrained) -> Writing:
    """The layout of the released files.

    Raises:
      UserError: the original has no such model.
    """
    model = pretrained.model
    check(model, "npz", TITLE)
    theirs = COMPUTES if getattr(model, "stem", None) is None else {**COMPUTES, "stem_numerics": "original"}
    return Writing(Layout(), about(pretrained), tuple(differences(model, theirs, TITLE)))


OBSTACLES: tuple[tuple[str, Callable[[Any], bool], frozenset[str]], ...] = (
    ("registers", lambda m: bool(m.registers), frozenset({"timm"})),
    ("LayerScale", lambda m: m.layer_scale is not None, frozenset({"timm"})),
    ("class token beside the average (pool 'cls_gap')", lambda m: m.pool == "cls_gap", frozenset()),
    ("attention pooling (pool 'map')", lambda m: m.pool == "map", frozenset({"big_vision", "timm"})),
    ("fixed sin-cos positions", lambda m: m.positions == "sincos2d", frozenset({"big_vision"})),
    ("ResNet stem", lambda m: m.stem is not None, frozenset({"npz", "timm"})),
    ("tanh layer before the head (pre_logits)", lambda m: m.pre_logits is not None, frozenset({"npz", "big_vision"})),
)
"""What not every format can say of a ViT, and which can; all of it can stay in our own, ``vit_jax``."""


def check(model: ImageModel, name: str, title: str) -> None:
    """Raises :class:`UserError` where the format ``name`` cannot express ``model``, naming one that can."""
    specs = [field for field in config.hints(type(model)) if field.endswith("_linear")]
    found = [(f"{field} but dense ones", frozenset[str]()) for field in specs if getattr(model, field) != Dense()]
    found += [(what, can) for what, has, can in OBSTACLES if isinstance(model, ViT) and has(model)]
    if refused := [what for what, can in found if name not in can]:
        able = [to for to in ("big_vision", "npz", "timm") if all(to in can for _, can in found)]
        remedy = able[0] if able else "vit_jax"
        raise UserError(f"the models of {title} have no {' and no '.join(refused)}; use --to {remedy}.")


def differences(model: ImageModel, theirs: Mapping[str, Any], title: str) -> Iterator[str]:
    """What ``title`` computes otherwise than ``model``, as its files do not say: a phrase each."""
    for field, value in theirs.items():
        if (ours := getattr(model, field)) != value:
            yield f"{title} computes with {field} {value!r}, this model with {ours!r}: its outputs there differ"


FORMAT = Format("npz", TITLE, ".npz", "bilinear_corners", matches, read, rules, write, peer)
