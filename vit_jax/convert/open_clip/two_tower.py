"""open_clip's CLIP, SigLIP and CoCa, as of 3.3.0.

OpenAI's CLIP has the same tensors; saved as a state dictionary it is read as well.
"""

from __future__ import annotations

from collections.abc import Collection

from vit_jax.convert.format import Codec, Reading, Writing
from vit_jax.convert.open_clip import config as configs
from vit_jax.convert.open_clip import tokenizer
from vit_jax.convert.open_clip import write as writer
from vit_jax.convert.open_clip.config import BUFFERS, FILE, Config
from vit_jax.convert.open_clip.peer import peer, processor
from vit_jax.convert.open_clip.rules import rules
from vit_jax.convert.pretrained import Stored
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.models import CoCa, TextTransformer, TwoTower, ViT
from vit_jax.models.coca import TextDecoder


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these ``names`` are of an image-text model of open_clip's, even of one not converted."""
    return any(name.startswith("visual.") for name in names)


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: the model has parts that none of ours has; a tensor that tells a size is missing.
    """
    config = Config.of(about, theirs.keys())
    fields, layout, size, notes = configs.read(theirs, config)
    parts = [part for part in ("image_tower", "text_tower", "decoder") if part in fields]
    guessed = [f"{part}.{field}" for part in parts for field in ("heads", "activation", "norm_epsilon")]
    assumed = {} if config.model else dict.fromkeys(guessed, notes.pop(0))
    images, more = configs.preprocess(config, size, fields["image_tower"]["patch"])
    text = fields["text_tower"]
    encoder, unfound = tokenizer.read(about, config.tower("text_cfg"), text["length"], text["vocab_size"])
    if encoder is not None and text["pool"] != "end":  # which alone looks for that token
        text["end_id"] = encoder.tokenizer.end_id
    return Reading(fields, images, (), layout, BUFFERS, (*notes, *more, *unfound), encoder=encoder, assumed=assumed)


def write(pretrained: Stored) -> Writing:
    """A folder for ``open_clip.create_model_from_pretrained("local-dir:...")``.

    Raises:
      UserError: open_clip has no such model.
    """
    model = pretrained.model
    said, files, notes = tokenizer.write(pretrained.encoder, model.text_tower.pool)
    content, layout, more = writer.write(model, pretrained.preprocess, said)
    return Writing(layout, {FILE: content, **files}, (*more, *notes))


CODEC = Codec(
    (TwoTower, CoCa), matches, read, rules, write, peer, parts=(ViT, TextTransformer, TextDecoder),
    limits=writer.LIMITS, processor=processor,
)  # fmt: skip
