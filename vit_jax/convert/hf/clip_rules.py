"""How Hugging Face transformers names the tensors of its CLIP and SigLIP models, MetaCLIP 2 too, and ours of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.convert.fields import shape, square
from vit_jax.convert.rules import Block, Rule, rule, torch_blocks, torch_cross, torch_linear, torch_mlp, torch_norm
from vit_jax.convert.transforms import CONV, FLAT_PATCHES, LEADING, LINEAR, SAME, TOKEN, Transform
from vit_jax.io.tensors import Tensors
from vit_jax.models import TwoTower, ViT
from vit_jax.types import UserError

VISION, TEXT = TOWERS = ("vision_model.", "text_model.")
"""What the names of each tower start with."""
PATCHES = f"{VISION}embeddings.patch_embedding.weight"
TOKENS = f"{TEXT}embeddings.token_embedding.weight"
POSITIONS = tuple(f"{tower}embeddings.position_embedding.weight" for tower in TOWERS)
BUFFERS = tuple(f"{tower}embeddings.position_ids" for tower in TOWERS)
"""0, 1, 2, ...; in files from before transformers 4.31."""
CLIPS = ("clip", "metaclip_2")
"""CLIP, and MetaCLIP 2 (Chuang et al. 2025, arXiv:2507.22062), which is CLIP but for its vocabulary."""
FAMILIES = (*CLIPS, "siglip", "siglip2")
"""By ``model_type``; a SigLIP 2 for images of one fixed size is of ``"siglip"`` there."""
ESSENTIAL = {
    **dict.fromkeys(CLIPS, ("visual_projection.weight", 2)),
    "siglip": (f"{VISION}head.probe", 3),
    "siglip2": (f"{VISION}head.probe", 3),
}
"""A tensor, and its rank, that a model of the family has and CLIP, or all but CLIP, have not."""

ONE = Transform(lambda x: (x.reshape(()),), lambda x: (x.reshape(1),))
SCALARS = {**dict.fromkeys(CLIPS, SAME), "siglip": ONE, "siglip2": ONE}
"""The temperature is ``[]`` in CLIP, temperature and bias are ``[1]`` in SigLIP."""


PATCH = {"siglip2": FLAT_PATCHES}

BLOCK = Block(
    ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"), "self_attn.out_proj",
    ("mlp.fc1", "mlp.fc2"), ("layer_norm1", "layer_norm2"),
)  # fmt: skip


def image_size(theirs: Tensors, family: str, patch: int, positions: str = POSITIONS[0]) -> int:
    """Side in pixels of the images whose ``positions`` are stored.

    Raises:
      UserError: they are not there, or no square.
    """
    return patch * square(shape(theirs, positions, 2)[0] - (family in CLIPS), "the position embedding")


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of one of transformers' image-text models, even of one not converted."""
    return any(name.startswith(TEXT) for name in names)


def family_of(theirs: Tensors, settings: Mapping[str, Any]) -> str:
    """Which of :data:`FAMILIES` a file is of, by its names and the ``config.json`` ``settings`` ({} where unknown).

    Raises:
      UserError: another model; one tower alone.
    """
    if not any(name.startswith(VISION) for name in theirs):
        raise UserError(
            f"these are weights of a text tower alone ({TEXT}*); of transformers' image-text models whole ones and "
            "image towers are converted: get the file with both towers."
        )
    guess = kind_of(theirs, VISION)
    if (family := settings.get("model_type", guess)) not in FAMILIES:
        raise UserError(
            f"these are weights of transformers' {family!r}; of its image-text models {', '.join(FAMILIES)} "
            "are converted."
        )
    shape(theirs, *ESSENTIAL[family])
    return family


def kind_of(theirs: Tensors, start: str) -> str:
    """The family of an image tower whose names begin with ``start``; one for any shape has a linear map of patches."""
    if not any(name.startswith(f"{start}head.") for name in theirs):
        return "clip"
    patches = theirs.get(f"{start}embeddings.patch_embedding.weight")
    return "siglip2" if patches is not None and len(patches.shape) == 2 else "siglip"


def rules(model: TwoTower, family: str) -> list[Rule]:
    """Every tensor of a file of ``family`` and the parameters of ``model`` that it holds."""
    image, text = model.image_tower, model.text_tower
    assert isinstance(image, ViT), type(image)
    found = [
        *image_rules(VISION, "image_tower/", family, image),
        rule(TOKENS, "text_tower/token/embedding"),
        rule(POSITIONS[1], "text_tower/position/embedding", LEADING),
        *torch_blocks(f"{TEXT}encoder.layers.", "text_tower/encoder/block_", text, BLOCK),
        *torch_norm(f"{TEXT}final_layer_norm", "text_tower/encoder/norm"),
        rule("logit_scale", "logit_scale", SCALARS[family]),
    ]
    if family in CLIPS:
        return [
            *found,
            rule("visual_projection.weight", "image_head/kernel", LINEAR),
            rule("text_projection.weight", "text_head/kernel", LINEAR),
        ]
    return [
        *found,
        *torch_linear(f"{TEXT}head", "text_head"),
        rule("logit_bias", "logit_bias", SCALARS[family]),
    ]


def image_rules(theirs: str, ours: str, family: str, tower: ViT) -> list[Rule]:
    """The image tower's part of :func:`rules`, whose names start with ``theirs`` there and ``ours`` here."""
    found = [
        rule(f"{theirs}embeddings.patch_embedding.weight", f"{ours}patch/kernel", PATCH.get(family, CONV)),
        rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}position/embedding", LEADING),
        *torch_blocks(f"{theirs}encoder.layers.", f"{ours}encoder/block_", tower, BLOCK),
        *torch_norm(f"{theirs}post_layernorm", f"{ours}encoder/norm"),
    ]
    if family in CLIPS:
        cls = rule(f"{theirs}embeddings.class_embedding", f"{ours}cls", TOKEN)
        return [*found, cls, *torch_norm(f"{theirs}pre_layrnorm", f"{ours}norm_pre")]  # their spelling
    bias = rule(f"{theirs}embeddings.patch_embedding.bias", f"{ours}patch/bias")
    return [*found, bias, *_pooling(f"{theirs}head", f"{ours}pool", tower.heads)]


def _pooling(theirs: str, ours: str, heads: int) -> list[Rule]:
    """SigLIP's attention pooling, whose attention is ``torch.nn.MultiheadAttention``."""
    return [
        rule(f"{theirs}.probe", f"{ours}/probe"),
        *torch_cross(f"{theirs}.attention", f"{ours}/attention", heads),
        *torch_norm(f"{theirs}.layernorm", f"{ours}/norm_mlp"),
        *torch_mlp(f"{theirs}.mlp", f"{ours}/mlp"),
    ]
