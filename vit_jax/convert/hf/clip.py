"""``CLIPModel``, ``MetaClip2Model``, ``SiglipModel`` and ``Siglip2Model`` (NaFlex) of Hugging Face transformers."""

from __future__ import annotations

from vit_jax.convert.format import Codec, Reading, Writing
from vit_jax.convert.hf import clip_config, processor, tokenizer, vit_peer
from vit_jax.convert.hf.clip_peer import peer
from vit_jax.convert.hf.clip_rules import BUFFERS, CLIPS, FAMILIES, family_of, image_size, matches, rules
from vit_jax.convert.hf.vit_config import FILE
from vit_jax.convert.pretrained import Stored
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.models import TextTransformer, TwoTower, ViT
from vit_jax.types import OutputActivation

ACTIVATIONS: dict[str, OutputActivation] = {name: "softmax" if name in CLIPS else "sigmoid" for name in FAMILIES}


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: another of transformers' models, a setting that is not ours, a tensor that is missing.
    """
    settings = about.get(FILE) or {}
    family = family_of(theirs, settings)
    model, assumed = clip_config.fields(theirs, family, settings)
    image, text = model["image_tower"], model["text_tower"]
    size = image_size(theirs, family, image["patch"])
    preprocess, more = processor.read(about.get(processor.FILE), family, size, image["patch"])
    gemma = text["vocab_size"] == clip_config.GEMMA
    encoder, unfound = tokenizer.read(about, family, text["length"], gemma)
    if encoder is not None:
        t = encoder.tokenizer
        model["text_tower"] = {**text, "pad_id": t.pad_id, **({"end_id": t.end_id} if family not in CLIPS else {})}
    unused = dict.fromkeys(BUFFERS, "positions are counted, not stored")
    found = (*more, *unfound)
    return Reading(model, preprocess, (), family, unused, found, ACTIVATIONS[family], None, encoder, assumed)


def write(pretrained: Stored) -> Writing:
    """How transformers stores the model."""
    family = clip_config.nearest(pretrained.model)
    start = None if pretrained.encoder is None else pretrained.encoder.tokenizer.start_id
    preprocess, tower = pretrained.preprocess, pretrained.model.image_tower
    patch = None if tower.position_grid is None else tower.patch
    config = clip_config.content(pretrained.model, family, preprocess.size + preprocess.frame.rest, start)
    images, notes = processor.write(preprocess, pair=True, patch=patch)
    texts, more = tokenizer.write(pretrained.encoder, family)
    return Writing(family, {FILE: config, processor.FILE: images, **texts}, (*notes, *more))


CODEC = Codec(
    (TwoTower,), matches, read, rules, write, peer, parts=(ViT, TextTransformer), limits=clip_config.LIMITS,
    says={"position_grid": int}, processor=vit_peer.images,
)  # fmt: skip
