"""Image-text models in the Flax trees of big_vision (SigLIP, LiT) and of the original repository (LiT).

Source: ``models/proj/image_text/two_towers.py`` and ``text_transformer.py`` of google-research/big_vision,
``models_lit.py`` of google-research/vision_transformer. The image tower is a ViT of the same repository under ``img/``,
the text tower ``txt/`` has its encoder; ``t`` is the logarithm of the inverse temperature, ``b`` SigLIP's bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax import config
from vit_jax.convert import transforms
from vit_jax.convert.fields import shape
from vit_jax.convert.flax import image as images
from vit_jax.convert.flax import rules as trees
from vit_jax.convert.flax.image import COMPUTES, PREFIXES, SIDECAR, Sidecar, contradictions
from vit_jax.convert.flax.rules import MAP, Layout, pooling, same
from vit_jax.convert.format import Limit, Reading, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, renamed, rule
from vit_jax.convert.transforms import Transform
from vit_jax.data import text
from vit_jax.data.text import TextCodec
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.models import TextTransformer, TwoTower, describe
from vit_jax.types import UserError

TOKENIZER = "tokenizer_state.json"
"""Name of what :func:`vit_jax.data.text.to_meta` makes of the encoder, among the JSON beside the weights."""
IMAGE, TEXT = "img/", "txt/"
TOKENS, POSITIONS, EXTRA = "Embed_0/embedding", "pos_embedding", "Encoder_0/pos_embedding"
ENDS = {"end_id": 1, "pad_id": 1}
"""SentencePiece's end token, which also fills up."""
SO400M_REST = 6
"""Pixels of an image of 384 px beyond its 27 patches of 14."""
SCALAR = transforms.reshape((1,), ())
SUM = Transform(lambda a, b: (a + b,), lambda x: (x, np.zeros_like(x)))
"""Some old files hold the text's positions twice; big_vision adds them up too."""


@dataclasses.dataclass(frozen=True)
class Towers:
    """How one file names and lays out a model.

    Attributes:
      prefix: before every name.
      image: of the image tower, without a prefix.
      text: of the text tower's encoder.
      twice: whether there are two tables of the text's positions.
    """

    prefix: str
    image: Layout
    text: Layout
    twice: bool = False


def prefix_of(names: Collection[str]) -> str | None:
    """What precedes the parameters of an image-text model; None where these are no tensors of one."""
    for prefix in PREFIXES:
        if all(any(name.startswith(prefix + tower) for name in names) for tower in (IMAGE, TEXT)):
            return prefix
    return None


def image_names(names: Collection[str]) -> list[str] | None:
    """The names in the image tower of an image-text model, None where it is none."""
    if (prefix := prefix_of(names)) is None:
        return None
    return [name.removeprefix(prefix + IMAGE) for name in names if name.startswith(prefix + IMAGE)]


def rules(model: TwoTower, towers: Towers) -> list[Rule]:
    """Every tensor of a file of ``model``."""
    parts = renamed(trees.rules(model.image_tower, towers.image), IMAGE, "image_tower/")
    parts += renamed(_text_rules(model.text_tower, towers), TEXT, "text_tower/")
    for where, side, head in ((IMAGE, "image", model.image_head), (TEXT, "text", model.text_head)):
        leaves = {"none": (), "linear": MAP[:1], "biased": MAP}[head]
        parts += same(f"{where}head", f"{side}_head", leaves)
    parts.append(rule("t", "logit_scale", SCALAR))
    if model.bias is not None:
        parts.append(rule("b", "logit_bias", SCALAR))
    return renamed(parts, towers.prefix)


def _text_rules(tower: TextTransformer, towers: Towers) -> list[Rule]:
    names = [POSITIONS, EXTRA] if towers.twice else [POSITIONS]
    found = [rule(TOKENS, "token/embedding"), rule(names, "position/embedding", SUM if towers.twice else None)]
    found += trees.encoder("Encoder_0", tower.depth, tower.heads, towers.text)
    return found + (pooling("map", tower.heads) if tower.pool == "map" else [])


def read(theirs: Tensors, about: About) -> Reading:
    """The model of a file; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: a text tower that is no text_transformer; a tensor that tells the size of the model is missing; the
        sidecar is damaged or of another model.
    """
    prefix = prefix_of(theirs.keys())
    assert prefix is not None, list(theirs)[:3]
    image, txt = (_under(theirs, prefix + tower) for tower in (IMAGE, TEXT))
    said = config.parse(Sidecar, about[SIDECAR], SIDECAR) if SIDECAR in about else None
    image_fields, size, layout, notes = images.image_fields(image, "", said.preprocess.size if said else None)
    text_fields, towers = _text(txt, Towers(prefix, layout, Layout()))
    dims = {side: _outputs(leaves) for side, leaves in (("image", image), ("text", txt))}
    fields: dict[str, Any] = {f"{side}_head": "biased" if dim else "none" for side, dim in dims.items()}
    fields["name"] = "two_tower"
    fields["embed_dim"] = dims["text"] or dims["image"] or text_fields["width"]
    fields["image_tower"], fields["text_tower"] = image_fields | {"num_classes": 0}, text_fields
    bias, found = f"{prefix}b" in theirs, text.from_meta(about.get(TOKENIZER))
    own = (prefix + IMAGE, prefix + TEXT)
    scalars = (f"{prefix}t", f"{prefix}b")
    unused = {x: "state of the training" for x in theirs if not x.startswith(own) and x not in scalars}
    if said is not None:
        model, more = _described(said, fields, bias)
        more += contradictions(said.preprocess, {"size": size})
        preprocess, output_activation = dataclasses.replace(said.preprocess, size=size), said.output_activation
    else:
        rest = SO400M_REST if (size, image_fields.get("patch")) == (378, 14) else 0
        preprocess, output_activation = images.upstream(size, rest), "sigmoid" if bias else "softmax"
        model, more = _assumed(fields, bias, found), [images.assumed(size + rest, output_activation)]
        if rest:
            more += [
                f"images of {size + rest} px are assumed, as SigLIP So400m/14 has, whose last {rest} make no patch"
            ]
        if "pool" not in text_fields:
            more += [
                "texts are assumed to be pooled at their last token (pool_type='last'; for another: --model "
                "\"two_tower(text_tower={'pool': 'first'})\")"
            ]
        more += [] if found else [f"texts are assumed to end in token {ENDS['end_id']}, which also fills them up"]
    return Reading(model, preprocess, (), towers, unused, (*notes, *more), output_activation, encoder=found)


def _outputs(own: Tensors) -> int:
    return own[f"head/{MAP[0]}"].shape[-1] if f"head/{MAP[0]}" in own else 0


def _assumed(fields: Mapping[str, Any], bias: bool, encoder: TextCodec | None) -> dict[str, Any]:
    """The model with ``fields``, in the rest as both projects make them."""
    tokenizer = encoder and encoder.tokenizer
    ends = {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id} if tokenizer else ENDS
    image = {**images.computes(fields["image_tower"]), **fields["image_tower"]}
    text_tower = {"causal": False, "pool": "last", **COMPUTES, **ends, **fields["text_tower"]}
    initial = {"temperature": 10.0, "bias": -10.0 if bias else None}
    return {**initial, **fields, "image_tower": image, "text_tower": text_tower}


def _under(theirs: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}


def _described(said: Sidecar, fields: Mapping[str, Any], bias: bool) -> tuple[dict[str, Any], list[str]]:
    """The model of the sidecar with ``fields``, which the tensors tell, and where the two differ.

    Raises:
      UserError: it describes another kind of model.
    """
    module = describe.build(said.model)
    pair = isinstance(module, TwoTower)
    there, scalar = (type(module.image_tower).__name__, module.bias) if pair else ("NoneType", None)
    if type(module) is not TwoTower or there.lower() != fields["image_tower"]["name"] or bias != (scalar is not None):
        raise UserError(
            f"{SIDECAR} describes a {type(module).__name__}, its image tower a {there}, its bias {scalar}, which the "
            "tensors are not; remove one of them."
        )
    return images.merged(said.model, module, fields)


def _text(own: Tensors, towers: Towers) -> tuple[dict[str, Any], Towers]:
    """Fields of the text tower that shapes decide, and the layout with its own."""
    if any(name.startswith("BertEncoder_0/") for name in own):
        raise UserError(
            "the text tower is a BERT, as of LiT-B16B and LiT-L16L; of LiT those with a text_transformer are converted "
            "(LiT-L16S, LiT-L16Ti), and SigLIP."
        )
    vocab_size, width = shape(own, TOKENS, 2)
    blocks, layout = images.encoder(own, "Encoder_0")
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "length": shape(own, POSITIONS, 3)[1],
        "width": width,
        **blocks,
    }
    if any(name.startswith("MAPHead_0/") for name in own):
        fields["pool"] = "map"
    return fields, dataclasses.replace(towers, text=layout, twice=EXTRA in own)


LIMITS = tuple(
    Limit(TextTransformer, field, allowed, "the text towers of {title} have no {what}; use --to vit_jax.",
          f"{field}={{0.{field}!r}}")
    for field, allowed in {"causal": (False,), "layer_scale": (None,), "pool": ("last", "first", "map")}.items()
)  # fmt: skip
"""What of a text tower neither project has."""


def write(pretrained: Stored, towers: Towers, title: str) -> Writing:
    """``pretrained``, whose image tower ``title`` has, in the layout ``towers``."""
    model = pretrained.model
    extra, notes = {}, []
    for where, side, kind in ((IMAGE, "image", model.image_head), (TEXT, "text", model.text_head)):
        if kind == "linear":
            extra[f"{towers.prefix}{where}head/bias"] = Tensor.of(np.zeros(model.embed_dim, np.float32))
            notes.append(f"the {side} head has no bias, those of {title} have one: zeros are written")
    if model.text_tower.pool == "first":
        notes.append(f"{title} pools texts at their last token by default; set pool_type='first' there")
    about = dict(images.about(pretrained))
    if pretrained.encoder is not None:
        about[TOKENIZER] = text.to_meta(pretrained.encoder)
    return Writing(towers, about, tuple(notes), extra)
