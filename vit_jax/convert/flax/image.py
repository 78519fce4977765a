"""The model of a Flax tree from its names and shapes, and ``vit_jax.json``, which says what they leave open."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vit_jax import config
from vit_jax.convert.fields import grid, shape, square, stride
from vit_jax.convert.flax.rules import MAP, POSITIONS, Layout
from vit_jax.convert.format import Reading
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.framing import Framing
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.models import Mixer, describe
from vit_jax.types import OutputActivation, UserError

SIDECAR = "vit_jax.json"
PREFIXES = ("", "params/", "opt/target/")
"""What precedes the parameters: nothing, or their place in a training state, now and with Flax's first optimizers."""
COMPUTES = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}
"""What both projects compute and their files do not say."""


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The content of ``vit_jax.json``: what weights alone do not say; fields as of :class:`~.base.Described`."""

    model: dict[str, Any]
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    output_activation: OutputActivation = dataclasses.field(default="softmax", metadata={"formerly": "link"})


def about(pretrained: Stored) -> About:
    """The JSON beside weights that carry no configuration, see :class:`Sidecar`."""
    content = {
        "model": describe.describe(pretrained.model),
        "preprocess": dataclasses.asdict(pretrained.preprocess),
        "class_names": list(pretrained.class_names),
        "output_activation": pretrained.output_activation,
    }
    return {SIDECAR: content}


def prefix_of(names: Collection[str]) -> str | None:
    """What precedes the parameters of a ViT or Mixer; None where these are no tensors of such a tree."""
    for prefix in PREFIXES:
        if any(name.startswith((f"{prefix}Transformer/encoder", f"{prefix}MixerBlock_")) for name in names):
            return prefix
    return None


def read(theirs: Tensors, about: About) -> Reading:
    """The model of a file in any :class:`Layout`.

    Raises:
      UserError: a tensor that tells the size of the model is missing; the sidecar is damaged or of another model.
    """
    prefix = prefix_of(theirs.keys())
    assert prefix is not None, list(theirs)[:3]
    own = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    unused = {name: "state of the training" for name in theirs if not name.startswith(prefix)}
    said = config.parse(Sidecar, about[SIDECAR], SIDECAR) if SIDECAR in about else None
    fields, size, layout, notes = image_fields(own, prefix, said.preprocess.size if said else None)
    if said is None:
        found = {**computes(fields), **fields}
        notes += [assumed(size, "softmax")]
        return Reading(found, upstream(size), layout=layout, unused=unused, notes=tuple(notes))
    model = describe.build(said.model)
    if isinstance(model, Mixer) != (fields["name"] == "mixer"):
        raise UserError(f"{SIDECAR} describes a {type(model).__name__}, which the tensors are not; remove one of them.")
    found, more = merged(said.model, model, fields)
    notes += [*more, *contradictions(said.preprocess, {"size": size})]
    preprocess = dataclasses.replace(said.preprocess, size=size)
    return Reading(found, preprocess, said.class_names, layout, unused, tuple(notes), said.output_activation)


def computes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What both projects compute in an image model with these ``fields``."""
    return COMPUTES if fields["name"] == "mixer" else {**COMPUTES, "stem_numerics": "original"}


def assumed(size: int, output_activation: str) -> str:
    """The phrase for what is assumed where no sidecar says it."""
    return (
        f"no {SIDECAR} describes it: GELU by tanh, the whole image squashed to {size} px (bilinear, not antialiased), "
        f"mean and std 0.5, and {output_activation} are assumed, as both projects evaluate"
    )


def upstream(size: int, rest: int = 0) -> Preprocess:
    """How both projects prepare images for evaluation: ``tf.image.resize`` to a square, values from -1 to 1."""
    return Preprocess(size, interpolation="bilinear_plain", frame=Framing("squash", rest=rest))


def contradictions(said: Any, fields: Mapping[str, Any], where: str = "") -> list[str]:
    """A phrase for each field that is otherwise in ``said``, which the sidecar describes, than the tensors tell."""
    differ = {k: (getattr(said, k), v) for k, v in fields.items() if k != "name" and getattr(said, k) != v}
    return [f"{SIDECAR} says {where}{k}={a!r}, the tensors say {b!r}, which is taken" for k, (a, b) in differ.items()]


def merged(
    said: Mapping[str, Any], module: Any, fields: Mapping[str, Any], where: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The model that the sidecar describes with ``fields``, which the tensors tell, and where the two differ.

    Args:
      said: the description, of a model or of a part of one.
      module: what it is of.
      fields: nested for the modules among them.
      where: what precedes a field's name.
    """
    model = {**(describe.own_fields(said) if "name" in said else said)}
    parts = {key: value for key, value in fields.items() if isinstance(value, Mapping)}
    notes = contradictions(module, {key: value for key, value in fields.items() if key not in parts}, where)
    for key, value in parts.items():
        part, more = merged(model.get(key, {}), getattr(module, key), value, f"{key}.")
        model, notes = {**model, key: part}, notes + more
    return {**model, **{key: value for key, value in fields.items() if key not in parts}}, notes


Found = tuple[dict[str, Any], int, Layout, list[str]]
"""Fields that shapes decide, size of the images, layout, notes."""


def image_fields(own: Tensors, prefix: str, said: int | None) -> Found:
    """What the tensors of an image model tell.

    Args:
      own: without what precedes them.
      prefix: what does, for the layout.
      said: the size of the images, taken where the tensors do not tell it; None guesses.

    Raises:
      UserError: a tensor that tells the size of the model is missing.
    """
    if any(name.startswith("MixerBlock_") for name in own):
        return _mixer(own, prefix)
    fields, size, layout, notes = _vit(own, prefix, said)
    if size is None:
        unit = fields["patch"] * stride(fields["stem"])
        size = said or max(224 // unit, 1) * unit
        notes += [f"no positions are stored: fixed sin-cos ones are assumed, for images of {size} px"]
    return fields, size, layout, notes


def _mixer(own: Tensors, prefix: str) -> Found:
    depth = count(own, "MixerBlock_")
    patch, width = _patch(own, "stem/kernel")
    tokens, token_dim = shape(own, "MixerBlock_0/token_mixing/Dense_0/kernel", 2)
    mlp_dim = shape(own, "MixerBlock_0/channel_mixing/Dense_0/kernel", 2)[1]
    size = patch * square(tokens, "MixerBlock_0/token_mixing/Dense_0/kernel")
    fields = {"patch": patch, "width": width, "depth": depth, "token_dim": token_dim, "mlp_dim": mlp_dim}
    return {"name": "mixer", **fields, "num_classes": _outputs(own, "head")}, size, Layout(prefix), []


def _vit(own: Tensors, prefix: str, said: int | None) -> tuple[dict[str, Any], int | None, Layout, list[str]]:
    patch, width = _patch(own, "embedding/kernel")
    blocks, layout = encoder(own, "Transformer")
    pool = "cls" if "cls" in own else "map" if any(name.startswith("MAPHead_0/") for name in own) else "gap"
    stem = _stages(own) if any(name.startswith(("conv_root/", "gn_root/", "block1/")) for name in own) else None
    original = POSITIONS[0] if layout.numbers == Layout().numbers else None
    position = next((name for name in POSITIONS if name in own), original)
    fields = {
        "name": "vit",
        "patch": patch,
        "width": width,
        **blocks,
        "pool": pool,
        "positions": "learn" if position else "sincos2d",
        "registers": 0,
        "pre_logits": _outputs(own, "pre_logits") or None,
        "stem": stem,
        "layer_scale": None,
        "num_classes": _outputs(own, "head"),
    }
    average = "average pooling is assumed, as there is neither a class token nor a pooling head"
    notes = [average] if pool == "gap" else []
    rank = len(own["gn_root/scale"].shape) if "gn_root/scale" in own else 1
    layout = dataclasses.replace(layout, prefix=prefix, position=position or POSITIONS[1], group_norm=rank)
    if position is None:
        return fields, None, layout, notes
    tokens = shape(own, position, 3)[1]
    unit, is_square = patch * stride(stem), math.isqrt(tokens) ** 2 == tokens
    before = {POSITIONS[0]: (1,), POSITIONS[1]: (0, 1)}.get(position, (0,) if is_square else (1,))
    told = [(said // unit, said // unit)] if said else []
    joint, side = grid(tokens, before if pool == "cls" else (0,), told, position, f"put the {SIDECAR} beside it")
    return fields, side * unit, dataclasses.replace(layout, cls_position=joint > 0), notes


def encoder(own: Tensors, name: str) -> tuple[dict[str, int], Layout]:
    """Fields of the blocks of the encoder ``name``, and how they are called and laid out.

    Raises:
      UserError: a tensor that tells one is missing, or a block is.
    """
    scanned = any(x.startswith(f"{name}/encoderblock/") for x in own)
    block = f"{name}/encoderblock" if scanned else f"{name}/encoderblock_0"
    old = any("/MultiHeadDotProductAttention_1/" in x for x in own)
    attention, _, mlp = numbers = (1, 2, 3) if old else (0, 1, 0)
    query = shape(own, f"{block}/MultiHeadDotProductAttention_{attention}/query/kernel", 3 + scanned)
    hidden = shape(own, f"{block}/MlpBlock_{mlp}/Dense_0/kernel", 2 + scanned)[-1]
    depth = query[0] if scanned else count(own, f"{name}/encoderblock_")
    return {"depth": depth, "heads": query[-2], "mlp_dim": hidden}, Layout(numbers=numbers, scanned=scanned)


def _stages(own: Tensors) -> tuple[int, ...]:
    return tuple(count(own, f"block{i + 1}/unit", 1) for i in range(count(own, "block", 1)))


def _outputs(own: Tensors, name: str) -> int:
    """Outputs of a linear map, 0 where there is none."""
    shapes = [own[f"{name}/{leaf}"].shape for leaf in MAP if f"{name}/{leaf}" in own]
    return next((shape[-1] for shape in shapes if shape), 0)


def _patch(own: Tensors, name: str) -> tuple[int, int]:
    height, side, _, width = shape(own, name, 4)
    if height != side:
        raise UserError(f"{name} has patches of {height}x{side} pixels; only square ones are converted.")
    return side, width


def count(names: Iterable[str], start: str, first: int = 0) -> int:
    """How many numbers follow ``start`` in the names: ``first``, ``first + 1``, ..."""
    matched = (re.match(rf"{start}(\d{{1,4}})/", name) for name in names)
    found = {int(m[1]) for m in matched if m}
    gap = next(i for i in itertools.count(first) if i not in found)
    if found and max(found) > gap:
        raise UserError(f"the file lacks {start}{gap}, but has {start}{max(found)}; it is not complete: get it again.")
    return gap - first
