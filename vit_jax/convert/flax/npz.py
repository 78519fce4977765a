"""The ``.npz`` files of google-research/vision_transformer: ViT, hybrids, Mixer, LiT; plus ``vit_jax.json``.

What the newer big_vision names otherwise is in :mod:`vit_jax.convert.flax.big_vision`; Mixers are named alike in both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vit_jax.convert.flax import image, image_peer, rules, two_tower, two_tower_peer
from vit_jax.convert.flax.image import COMPUTES, about, prefix_of
from vit_jax.convert.flax.rules import POSITIONS, Layout
from vit_jax.convert.flax.two_tower import Towers
from vit_jax.convert.format import Codec, Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.models import ImageModel, Mixer, TextTransformer, TwoTower, ViT

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


def write(pretrained: Stored, title: str, layout: Layout) -> Writing:
    """The files of ``title`` in ``layout``, with what is otherwise in its models."""
    return Writing(layout, about(pretrained), tuple(differences(pretrained, pretrained.model, title, layout)))


def write_towers(pretrained: Stored, title: str, towers: Towers) -> Writing:
    """As :func:`write`, of an image-text model."""
    image, text = pretrained.model.image_tower, pretrained.model.text_tower
    writing = two_tower.write(pretrained, towers, title)
    notes = [*differences(pretrained, image, title, towers.image, "image_tower/"), *_computed(text, COMPUTES, title)]
    return dataclasses.replace(writing, notes=(*writing.notes, *notes))


def differences(pretrained: Stored, model: ImageModel, title: str, layout: Layout, where: str = "") -> Iterator[str]:
    """What ``title`` computes otherwise than an image model whose parameters are at ``where``: one note each."""
    rows = None if layout.cls_position else pretrained.params.get(f"{where}position/embedding")
    if rows is not None and isinstance(model, ViT) and model.pool == "cls" and rows.read()[:, 0].any():
        yield f"{title} has no position for the class token: ours is added to the token, which is the same"
    hybrid = isinstance(model, ViT) and model.stem is not None
    yield from _computed(model, {**COMPUTES, "stem_numerics": "original"} if hybrid else COMPUTES, title)


def _computed(model: Any, theirs: Mapping[str, Any], title: str) -> Iterator[str]:
    for field, value in theirs.items():
        if (ours := getattr(model, field)) != value:
            yield f"{title} computes with {field} {value!r}, this model with {ours!r}: its outputs there differ"


def _limit(field: str, allowed: Collection[Any] | Callable[[Any], bool], what: str, *able: str) -> Limit:
    return Limit(ViT, field, allowed, "the models of {title} have no {what}; use --to {to}.", what, able)


LIMITS = (
    _limit("registers", (0,), "registers", "timm"),
    _limit("layer_scale", (None,), "LayerScale", "timm"),
    _limit("pool", ("cls", "gap", "map"), "class token beside the average (pool 'cls_gap')"),
    _limit("pool", ("cls", "gap", "cls_gap"), "attention pooling (pool 'map')", "big_vision", "timm"),
    _limit("positions", ("learn",), "fixed sin-cos positions", "big_vision"),
    _limit("stem", (None,), "ResNet stem", "npz", "timm"),
    _limit("pre_norm", (False,), "norm before the first block (pre_norm)"),
    _limit("patch_bias", (True,), "patch embedding without a bias (patch_bias)"),
    _limit("final_norm", (True,), "encoder without a norm after it (final_norm)", "timm"),
    _limit("pool_norm", (False,), "norm after pooling (pool_norm)", "timm"),
    _limit("", lambda m: not m.cls_token or m.pool in ("cls", "cls_gap"), "class token beside what is pooled", "timm"),
    _limit("pre_logits", (None,), "tanh layer before the head (pre_logits)", "big_vision", "npz"),
)
"""What the original or big_vision cannot say of a ViT, and who can."""
LIT = (
    Limit(TwoTower, "bias", (None,), "the models of {title} have no bias of the logits; use --to big_vision."),
    Limit(TextTransformer, "pool", ("last",),
          "the models of {title} have no text tower with pool={0.pool!r}; use --to big_vision."),
)  # fmt: skip
"""What the original alone cannot say of an image-text model: LiT's texts are pooled at their last token."""
_layout = Layout()
_towers = Towers("", Layout(), Layout(numbers=(0, 1, 0)))
IMAGES = Codec(
    (ViT, Mixer), matches, image.read, rules.rules, functools.partial(write, title=TITLE, layout=_layout),
    image_peer.peer, limits=LIMITS, processor=image_peer.processor,
)  # fmt: skip
TOWERS = Codec(
    (TwoTower,), matches_towers, two_tower.read, two_tower.rules,
    functools.partial(write_towers, title=TITLE, towers=_towers), two_tower_peer.peer,
    parts=(ViT, Mixer, TextTransformer), limits=(*LIMITS, *LIT, *two_tower.LIMITS),
    processor=image_peer.processor,
)  # fmt: skip
