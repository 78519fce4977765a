"""The ``.npz`` files of google-research/vision_transformer: ViT, hybrids, Mixer, LiT; plus ``vit_jax.json``.

What the newer big_vision names otherwise is in :mod:`vit_jax.convert.big_vision`; Mixers are named alike in both.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vit_jax import config
from vit_jax.convert import flax_read, flax_tree, flax_two_tower, flax_two_tower_peer, npz_peer
from vit_jax.convert.base import Format, Reading, Stored, Writing
from vit_jax.convert.flax_read import COMPUTES, about, prefix_of
from vit_jax.convert.flax_tree import POSITIONS, Layout
from vit_jax.convert.flax_two_tower import Towers
from vit_jax.convert.npz_peer import build_peer
from vit_jax.convert.table import Rule
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.layers.linear import Dense
from vit_jax.models import ImageModel, TwoTower, ViT
from vit_jax.types import UserError

__all__ = ["FORMAT", "build_peer", "check", "differences", "matches", "write"]

TITLE = "the original repository"


def matches(names: Collection[str]) -> bool:
    """Whether the file is the original's, by what tells it from a newer one: positions, stem, numbering.

    An image-text model is the original's where its image tower is.
    """
    names = names if (image := flax_two_tower.image_names(names)) is None else image
    if (prefix := prefix_of(names)) is None:
        return False
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if any(name.startswith("MixerBlock_") for name in own):
        return prefix == ""
    old = any("/MlpBlock_3/" in name for name in own) and own.isdisjoint(POSITIONS[1:])
    return POSITIONS[0] in own or "conv_root/kernel" in own or old


def read(theirs: Tensors, about: About) -> Reading:
    """The model of a file in any layout of either project; see :class:`vit_jax.convert.base.Format`."""
    both = flax_two_tower.prefix_of(theirs.keys()) is not None
    return (flax_two_tower if both else flax_read).read(theirs, about)


def rules(model: Any, layout: Any) -> list[Rule]:
    """Every tensor of a file; ``layout`` is as :func:`read` or a format's ``write`` gave it."""
    return (flax_two_tower if isinstance(model, TwoTower) else flax_tree).rules(model, layout)


def peer(path: pathlib.Path, model: Any) -> Callable[..., Any]:
    """Another project's reader of these files; see :class:`vit_jax.convert.base.Format`."""
    return (flax_two_tower_peer if isinstance(model, TwoTower) else npz_peer).peer(path, model)


def write(pretrained: Stored) -> Writing:
    """The layout of the released files.

    Raises:
      UserError: the original has no such model.
    """
    model = pretrained.model
    if isinstance(model, TwoTower):
        return _write_towers(pretrained)
    check(model, "npz", TITLE)
    return Writing(Layout(), about(pretrained), tuple(differences(model, _computes(model), TITLE)))


def _write_towers(pretrained: Stored) -> Writing:
    """As LiT's files are, whose texts are pooled at their last token."""
    model, text = pretrained.model, pretrained.model.text_tower
    check(model.image_tower, "npz", TITLE)
    if model.bias is not None or text.pool != "last":
        what = "bias of the logits" if model.bias is not None else f"text tower with pool={text.pool!r}"
        raise UserError(f"the models of {TITLE} have no {what}; use --to big_vision.")
    writing = flax_two_tower.write(pretrained, Towers("", Layout(), Layout(numbers=(0, 1, 0))), TITLE)
    notes = (*differences(model.image_tower, _computes(model.image_tower), TITLE), *differences(text, COMPUTES, TITLE))
    return dataclasses.replace(writing, notes=(*writing.notes, *notes))


def _computes(model: ImageModel) -> Mapping[str, Any]:
    return COMPUTES if getattr(model, "stem", None) is None else {**COMPUTES, "stem_numerics": "original"}


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
    specs = [field for field in config.hints(type(model)) if field.endswith("_linear")]
    found = [(f"{field} but dense ones", frozenset[str]()) for field in specs if getattr(model, field) != Dense()]
    found += [(what, can) for what, has, can in OBSTACLES if isinstance(model, ViT) and has(model)]
    if refused := [what for what, can in found if name not in can]:
        able = [to for to in ("big_vision", "npz", "timm") if all(to in can for _, can in found)]
        remedy = able[0] if able else "vit_jax"
        raise UserError(f"the models of {title} have no {' and no '.join(refused)}; use --to {remedy}.")


def differences(model: Any, theirs: Mapping[str, Any], title: str) -> Iterator[str]:
    """What ``title`` computes otherwise than ``model``, as its files do not say: one note each."""
    for field, value in theirs.items():
        if (ours := getattr(model, field)) != value:
            yield f"{title} computes with {field} {value!r}, this model with {ours!r}: its outputs there differ"


FORMAT = Format("npz", TITLE, ".npz", "bilinear_corners", matches, read, rules, write, peer)
