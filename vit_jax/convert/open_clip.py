"""open_clip's image-text models (https://github.com/mlfoundations/open_clip): CLIP, SigLIP and CoCa, as of 3.3.0.

OpenAI's CLIP has the same tensors; saved as a state dictionary it is read as well.
"""

from __future__ import annotations

from collections.abc import Collection

from vit_jax.convert import open_clip_config, open_clip_tokenizer, open_clip_write
from vit_jax.convert.base import Format, Reading, Stored, Writing
from vit_jax.convert.open_clip_config import BUFFERS, FILE, Config
from vit_jax.convert.open_clip_peer import peer
from vit_jax.convert.open_clip_rules import rules
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.models import TwoTower
from vit_jax.types import UserError


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these ``names`` are of an image-text model of open_clip's, even of one not converted."""
    return any(name.startswith("visual.") for name in names)


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.base.Format`.

    Raises:
      UserError: the model has parts that none of ours has; a tensor that tells a size is missing.
    """
    config = Config.of(about)
    fields, layout, size, notes = open_clip_config.read(theirs, config)
    images, more = open_clip_config.preprocess(config, size)
    text = fields["text_tower"]
    encoder, unfound = open_clip_tokenizer.read(about, config.tower("text_cfg"), text["length"], text["vocab_size"])
    if encoder is not None and text["pool"] != "end":  # which alone looks for that token
        text["end_id"] = encoder.tokenizer.end_id
    return Reading(fields, images, (), layout, BUFFERS, (*notes, *more, *unfound), encoder=encoder)


def write(pretrained: Stored) -> Writing:
    """A folder for ``open_clip.create_model_from_pretrained("local-dir:...")``.

    Raises:
      UserError: open_clip has no such model.
    """
    model = pretrained.model
    if not isinstance(model, TwoTower):
        raise UserError("open_clip's models have an image and a text tower, this one is of images; write --to timm.")
    said, files, notes = open_clip_tokenizer.write(pretrained.encoder, model.text_tower.pool)
    content, layout, more = open_clip_write.write(model, pretrained.preprocess, said)
    return Writing(layout, {FILE: content, **files}, (*more, *notes))


WEIGHTS = "open_clip_model.safetensors"
FORMAT = Format("open_clip", "open_clip", ".safetensors", "bicubic", matches, read, rules, write, peer, WEIGHTS)
