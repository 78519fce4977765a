"""The ``.npz`` files of google-research/vision_transformer: ViT, hybrids, Mixer, LiT; plus ``vit_jax.json``.

What the newer big_vision names otherwise is in :mod:`vit_jax.convert.flax.big_vision`; Mixers are named alike in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vit_jax.convert.flax import image, image_peer, rules, two_tower, two_tower_peer
from vit_jax.convert.flax.image import COMPUTES, about, prefix_of
from vit_jax.convert.flax.rules import POSITIONS, Layout
from vit_jax.convert.flax.two_tower import Towers
from vit_jax.convert.format import Codec, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.models import ImageModel, Mixer, TextTransformer, TwoTower, ViT
from vit_jax.types import UserError

TITLE = "the original repository"


def matches(names: Collection[str]) -> bool:
    """Whether an image model is the original's, by what tells it from a newer one: positions, stem, numbering."""
    if (prefix := prefix_of(names)) is None:
        return False
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if any(name.startswith("MixerBlock_") for name in own):
        return prefix == ""
    old = any("/MlpBlock_3/" in name for name in own) and own.isdisjoint(POSITIONS[1:])
    return POSITIONS[0] in own or "conv_root/kernel" in own or old


def matches_towers(names: Collection[str]) -> bool:
    """Whether an image-text model is the original's, as it is where its image tower is."""
    return (own := two_tower.image_names(names)) is not None and matches(own)


def write(pretrained: Stored) -> Writing:
    """The layout of the released files.

    Raises:
      UserError: the original has no such model.
    """
    model = pretrained.model
    check(model, "npz", TITLE)
    return Writing(Layout(), about(pretrained), tuple(differences(model, _computes(model), TITLE)))


def write_towers(pretrained: Stored) -> Writing:
    """As LiT's files are, whose texts are pooled at their last token.

    Raises:
      UserError: the original has no such model.
    """
    model, text = pretrained.model, pretrained.model.text_tower
    check(model.image_tower, "npz", TITLE)
    if model.bias is not None or text.pool != "last":
        what = "bias of the logits" if model.bias is not None else f"text tower with pool={text.pool!r}"
        raise UserError(f"the models of {TITLE} have no {what}; use --to big_vision.")
    writing = two_tower.write(pretrained, Towers("", Layout(), Layout(numbers=(0, 1, 0))), TITLE)
    notes = (*differences(model.image_tower, _computes(model.image_tower), TITLE), *differences(text, COMPUTES, TITLE))
    return dataclasses.replace(writing, notes=(*writing.notes, *notes))


def _computes(model: ImageModel) -> Mapping[str, Any]:
    hybrid = isinstance(model, ViT) and model.stem is not None
    return {**COMPUTES, "stem_numerics": "original"} if hybrid else COMPUTES


OBSTACLES: tuple[tuple[str, Callable[[Any], bool], frozenset[str]], ...] = (
    ("registers", lambda m: bool(m.registers), frozenset({"timm"})),
    ("LayerScale", lambda m: m.layer_scale is not None, frozenset({"timm"})),
    ("class token beside the average (pool 'cls_gap')", lambda m: m.pool == "cls_gap", frozenset()),
    ("attention pooling (pool 'map')", lambda m: m.pool == "map", frozenset({"big_vision", "timm"})),
    ("fixed sin-cos positions", lambda m: m.positions == "sincos2d", frozenset({"big_vision"})),
    ("ResNet stem", lambda m: m.stem is not None, frozenset({"npz", "timm"})),
    ("norm before the first block (pre_norm)", lambda m: m.pre_norm, frozenset()),
    ("patch embedding without a bias (patch_bias)", lambda m: not m.patch_bias, frozenset()),
    ("encoder without a norm after it (final_norm)", lambda m: not m.final_norm, frozenset()),
    ("tanh layer before the head (pre_logits)", lambda m: m.pre_logits is not None, frozenset({"npz", "big_vision"})),
)
"""What not every format can say of a ViT, and which can; all of it can stay in our own, ``vit_jax``."""


def check(model: ImageModel, name: str, title: str) -> None:
    """Raises :class:`UserError` where the format ``name`` cannot express ``model``, naming one that can."""
    found = [(what, can) for what, has, can in OBSTACLES if isinstance(model, ViT) and has(model)]
    if refused := [what for what, can in found if name not in can]:
        able = [to for to in ("big_vision", "npz", "timm") if all(to in can for _, can in found)]
        remedy = able[0] if able else "vit_jax"
        raise UserError(f"the models of {title} have no {' and no '.join(refused)}; use --to {remedy}.")


def differences(model: Any, theirs: Mapping[str, Any], title: str) -> Iterator[str]:
    """What ``title`` computes otherwise than ``model``, as its files do not say: one note each."""
    for field, value in theirs.items():
        if (ours := getattr(model, field)) != value:
            yield f"{title} computes with {field} {value!r}, this model with {ours!r}: its outputs there differ"


IMAGES = Codec((ViT, Mixer), matches, image.read, rules.rules, write, image_peer.peer)
TOWERS = Codec(
    (TwoTower,), matches_towers, two_tower.read, two_tower.rules, write_towers, two_tower_peer.peer,
    parts=(ViT, Mixer, TextTransformer),
)  # fmt: skip
