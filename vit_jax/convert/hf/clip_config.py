"""``config.json`` of transformers' CLIP and SigLIP <-> the fields of our :class:`TwoTower`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.convert.fields import depth, flat_patches, heads_of, shape, square
from vit_jax.convert.format import Limit
from vit_jax.convert.hf.clip_rules import CLIPS, PATCHES, POSITIONS, TEXT, TOKENS, VISION
from vit_jax.convert.hf.vit_config import FILE, activation_of, rgb_patches, sizes
from vit_jax.io.tensors import Tensors
from vit_jax.models import TwoTower
from vit_jax.types import UserError

IMAGE = {
    "positions": "learn", "registers": 0, "stem": None, "pre_logits": None, "final_norm": True, "layer_scale": None,
    "cls_token": False, "pool_norm": False, "position_grid": None,
}  # fmt: skip
"""Fields that all families leave no choice of, SigLIP 2's grid of positions apart."""
CLIP_END, LEGACY_END = 49407, 2
"""The end token of CLIP's vocabulary, and what configurations from before transformers 4.31 say instead: the largest
token of a text is its end then."""
GEMMA = 256_000
"""Size of SigLIP 2's vocabulary, which pads with 0; SigLIP's pads with its end token."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What transformers fixes, or assumes where ``config.json`` is silent.

    Attributes:
      title: what its classes start with.
      model: fields of :class:`TwoTower`.
      image: fields of its image tower.
      text: fields of its text tower.
      defaults: settings of each tower, by what its names start with.
    """

    title: str
    model: Mapping[str, Any]
    image: Mapping[str, Any]
    text: Mapping[str, Any]
    defaults: Mapping[str, Mapping[str, Any]]


SIGLIP = Family(
    "Siglip",
    {"image_head": "none", "text_head": "biased", "temperature": 10.0, "bias": -10.0},
    {"pool": "map", "patch_bias": True, "pre_norm": False, **IMAGE},
    {"pool": "last", "causal": False, "layer_scale": None},
    {
        tower: {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        for tower in (VISION, TEXT)
    },
)
CLIP = Family(
    "CLIP",
    {"image_head": "linear", "text_head": "linear", "bias": None},
    {"pool": "cls", "patch_bias": False, "pre_norm": True, **IMAGE},
    {"pool": "end", "causal": True, "layer_scale": None},
    {
        VISION: {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        TEXT: {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407,
               "pad_token_id": 1},
    },
)  # fmt: skip
FAMILIES = {
    "clip": CLIP,
    "metaclip_2": dataclasses.replace(CLIP, title="MetaClip2"),
    "siglip": SIGLIP,
    "siglip2": dataclasses.replace(SIGLIP, title="Siglip2", image={**SIGLIP.image, "position_grid": 16}),
}


Found = tuple[dict[str, Any], dict[str, str]]
"""Fields as plain data, and a note for each that is assumed."""


def fields(theirs: Tensors, family: str, settings: Mapping[str, Any]) -> Found:
    """The model of these tensors.

    Args:
      theirs: tensors, for their shapes.
      family: of :data:`FAMILIES`.
      settings: content of ``config.json``, {} where there is none.

    Raises:
      UserError: a setting that our model lacks; a missing tensor or one with an invalid shape.
    """
    width, patch = patches_of(theirs, family, PATCHES)
    vocab_size, text_width = shape(theirs, TOKENS, 2)
    known, told = FAMILIES[family], bool(settings)
    image, guesses = tower(theirs, VISION, width, tower_settings(settings, family, VISION), told)
    text, more = tower(theirs, TEXT, text_width, tower_settings(settings, family, TEXT), told)
    assumed = {f"image_tower.{field}": f"of its image tower {note}" for field, note in guesses.items()}
    assumed |= {f"text_tower.{field}": f"of its text tower {note}" for field, note in more.items()}
    length = shape(theirs, POSITIONS[1], 2)[0]
    ends = _clip_ends(settings, family, vocab_size) if family in CLIPS else _siglip_ends(settings, family, vocab_size)
    head = shape(theirs, "text_projection.weight" if family in CLIPS else f"{TEXT}head.weight", 2)
    model = {
        "name": "two_tower",
        "image_tower": {
            "name": "vit",
            "num_classes": 0,
            "patch": patch,
            **image,
            **known.image,
            **grid_of(theirs, family, POSITIONS[0]),
        },
        "text_tower": {"vocab_size": vocab_size, "length": length, **text, **ends, **known.text},
        "embed_dim": head[0],
        **known.model,
    }
    return model, assumed


def patches_of(theirs: Tensors, family: str, name: str) -> tuple[int, int]:
    """Width and patch size that the weight of the patches, ``name``, tells."""
    return flat_patches(theirs, name) if family == "siglip2" else rgb_patches(theirs, name)


def grid_of(theirs: Tensors, family: str, name: str) -> dict[str, int]:
    """The field that the positions ``name`` tell of a SigLIP 2 for images of any shape."""
    return {"position_grid": square(shape(theirs, name, 2)[0], name)} if family == "siglip2" else {}


def tower(theirs: Tensors, start: str, width: int, given: Mapping[str, Any], told: bool) -> Found:
    """Fields that both kinds of towers have.

    Args:
      theirs: tensors, for their shapes.
      start: of the tower's names.
      width: of its tokens.
      given: its settings, defaults included.
      told: whether they are a file's, and not those of the family.
    """
    blocks = depth(theirs, rf"{start}encoder\.layers\.")
    mlp_dim = shape(theirs, f"{start}encoder.layers.0.mlp.fc1.weight", 2)[0]
    heads, note = heads_of(width, blocks, mlp_dim)
    act, epsilon = given["hidden_act"], given["layer_norm_eps"]
    found = {
        "width": width,
        "depth": blocks,
        "heads": given["num_attention_heads"] if told else heads,
        "mlp_dim": mlp_dim,
        "activation": activation_of(act),
        "norm_epsilon": epsilon,
    }
    rest = f"{act} and layer norms with epsilon {epsilon:g} are assumed, as no {FILE} tells"
    return found, {} if told else {"heads": note, "activation": rest, "norm_epsilon": rest}


def tower_settings(settings: Mapping[str, Any], family: str, prefix: str) -> dict[str, Any]:
    """The settings of one tower, defaults included.

    Old files repeat some of them under a second key, which wins, with its defaults.
    """
    defaults, key = FAMILIES[family].defaults[prefix], {VISION: "vision_config", TEXT: "text_config"}[prefix]
    again = settings.get(f"{key}_dict")
    return {**defaults, **(settings.get(key) or {}), **({} if again is None else {**defaults, **again})}


def _clip_ends(settings: Mapping[str, Any], family: str, vocab_size: int) -> dict[str, int]:
    given = tower_settings(settings, family, TEXT)
    end, pad = given["eos_token_id"], given["pad_token_id"]
    if not isinstance(end, int):
        raise UserError(f"eos_token_id={end!r} is no token; CLIP's text features are the state of one end token.")
    if end == LEGACY_END and family == "clip":
        return {"end_id": min(vocab_size - 1, CLIP_END), "pad_id": 0}
    return {"end_id": end, "pad_id": pad if isinstance(pad, int) else 0}


def _siglip_ends(settings: Mapping[str, Any], family: str, vocab_size: int) -> dict[str, int]:
    """What ``config.json`` says where it is neither CLIP's nor transformers' default, which no SigLIP has."""
    given = tower_settings(settings, family, TEXT)
    said = {ours: given.get(theirs) for ours, theirs in (("end_id", "eos_token_id"), ("pad_id", "pad_token_id"))}
    if said["end_id"] in (None, CLIP_END):
        return {"end_id": 1, "pad_id": 0 if vocab_size == GEMMA else 1}
    return {name: value if isinstance(value, int) else 1 for name, value in said.items()}


def nearest(model: TwoTower) -> str:
    """The family that ``model`` is one of, or differs least from: of two alike CLIP, which cannot say one end token."""
    found = min(FAMILIES, key=lambda name: len(list(_differences(model, FAMILIES[name]))))
    return "metaclip_2" if found == "clip" and model.text_tower.end_id == LEGACY_END else found


def _differences(model: TwoTower, family: Family) -> Iterator[str]:
    parts = {"": (model, family.model), "image_tower.": (model.image_tower, family.image)}
    parts["text_tower."] = (model.text_tower, family.text)
    for where, (own, fixed) in parts.items():
        for name, value in fixed.items():
            ours = getattr(own, name)
            if name in ("bias", "position_grid"):  # a bias, as the temperature, is only where training starts
                ours, value = (None if x is None else "a number" for x in (ours, value))
            if name != "temperature" and ours != value:
                yield f"{where}{name}={value!r} instead of {ours!r}"


def _nearest_has(model: TwoTower) -> str:
    family = FAMILIES[nearest(model)]
    return f"{family.title}, the nearest, has {' and '.join(list(_differences(model, family))[:3])}"


LIMITS = (
    Limit(TwoTower, "", lambda m: not any(_differences(m, FAMILIES[nearest(m)])),
          "transformers has no such image-text model: {what}; use --to vit_jax.", _nearest_has),
)  # fmt: skip
"""What none of the families is."""


def content(model: TwoTower, family: str, image_size: int, start_id: int | None) -> dict[str, Any]:
    """What ``config.json`` says of ``model``, which :data:`LIMITS` allow; ``start_id`` is the tokenizer's."""
    text, title = model.text_tower, FAMILIES[family].title
    joint = {"projection_dim": model.embed_dim} if family in CLIPS else {}
    vision = {**image_content(model.image_tower, image_size), **joint}
    return {
        "architectures": [f"{title}Model"],
        "model_type": family,
        **joint,
        "vision_config": {"model_type": f"{family}_vision_model", **vision},
        "text_config": {
            "model_type": f"{family}_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.length,
            **_sizes(text),
            **(joint or {"projection_size": model.embed_dim}),
            "bos_token_id": start_id,
            "eos_token_id": text.end_id,
            "pad_token_id": text.pad_id,
        },
    }


def image_content(tower: Any, image_size: int) -> dict[str, Any]:
    """What ``config.json`` says of an image tower."""
    positions = {"image_size": image_size} if tower.position_grid is None else {"num_patches": tower.position_grid**2}
    return {**positions, "patch_size": tower.patch, "num_channels": 3, **_sizes(tower)}


def _sizes(tower: Any) -> dict[str, Any]:
    return {"hidden_size": tower.width, "intermediate_size": tower.mlp_dim, **sizes(tower)}
