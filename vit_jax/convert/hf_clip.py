"""CLIP and SigLIP of Hugging Face transformers: ``CLIPModel`` and ``SiglipModel`` (also of SigLIP 2)."""

from __future__ import annotations

from vit_jax.convert import hf_clip_config, hf_processor, hf_tokenizer
from vit_jax.convert.base import Reading, Stored, Writing, square
from vit_jax.convert.hf_clip_names import BUFFERS, POSITIONS, family_of
from vit_jax.convert.hf_config import FILE
from vit_jax.convert.hf_names import shape
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors

LINKS = {"clip": "softmax", "siglip": "sigmoid"}


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.base.Format`.

    Raises:
      UserError: another of transformers' models, a setting that is not ours, a tensor that is missing.
    """
    settings = about.get(FILE) or {}
    family = family_of(theirs, settings)
    model, notes = hf_clip_config.fields(theirs, family, settings)
    image, text = model["image_tower"], model["text_tower"]
    tokens = shape(theirs, POSITIONS[0], 2)[0] - (family == "clip")
    size = image["patch"] * square(tokens, "the position embedding")
    preprocess, more = hf_processor.read(about.get(hf_processor.FILE), family, size)
    gemma = text["vocab_size"] == hf_clip_config.GEMMA
    encoder, unfound = hf_tokenizer.read(about, family, text["length"], gemma)
    if encoder is not None:
        t = encoder.tokenizer
        model["text_tower"] = {**text, "pad_id": t.pad_id, **({"end_id": t.end_id} if family == "siglip" else {})}
    unused = dict.fromkeys(BUFFERS, "positions are counted, not stored")
    found = (*notes, *more, *unfound)
    return Reading(model, preprocess, (), family, unused, found, LINKS[family], encoder=encoder)


def write(pretrained: Stored) -> Writing:
    """How transformers stores the model.

    Raises:
      UserError: none of its models is this one.
    """
    family = hf_clip_config.check(pretrained.model)
    start = None if pretrained.encoder is None else pretrained.encoder.tokenizer.start_id
    config = hf_clip_config.content(pretrained.model, family, pretrained.preprocess.size, start)
    processor, notes = hf_processor.write(pretrained.preprocess, "CLIP")
    tokenizer, more = hf_tokenizer.write(pretrained.encoder, family)
    return Writing(family, {FILE: config, hf_processor.FILE: processor, **tokenizer}, (*notes, *more))
