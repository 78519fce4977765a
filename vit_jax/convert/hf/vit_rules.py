"""How Hugging Face transformers names the tensors of its ViT, DeiT, ViTMAE and DINOv2 models, and which ours are.

Files have the names of transformers 4 (``encoder.layer.0.attention.attention.query``), which version 5 reads and writes
as well, while its modules in memory have others (``layers.0.attention.q_proj``): both are read, the former written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.convert.rules import Block, Rule, rule, torch_blocks, torch_linear, torch_norm
from vit_jax.convert.transforms import CONV
from vit_jax.models import ViT
from vit_jax.types import UserError

PATCHES = "embeddings.patch_embeddings.projection.weight"
POSITIONS = "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"
MASK = "embeddings.mask_token"
DIST = "embeddings.distillation_token"
POOLER = "pooler.dense"
OWNERS = ("", "vit.", "dinov2.", "dinov2_with_registers.", "deit.", "beit.", "data2vec_vision.", "yolos.", "ijepa.")
"""What precedes the names in transformers' own models; anything else is somebody's wrapper."""
HEAD, HEADS = "classifier", ("cls_classifier", "distillation_classifier")
"""The only names without the model's prefix; with a distillation token there are two."""
FAMILIES = ("vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers")
"""By ``model_type``."""


_FILE = ("attention.attention.query.{}", "attention.attention.key.{}", "attention.attention.value.{}")
_MEMORY = ("attention.q_proj.{}", "attention.k_proj.{}", "attention.v_proj.{}")
_VIT, _DINO, _FC = ("layernorm_before", "layernorm_after"), ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
SPELLINGS: dict[tuple[bool, bool], tuple[str, Block]] = {
    (False, False): (
        "encoder.layer.", Block(_FILE, "attention.output.dense", ("intermediate.dense", "output.dense"), _VIT)
    ),
    (False, True): ("layers.", Block(_MEMORY, "attention.o_proj", _FC, _VIT)),
    (True, False): ("encoder.layer.", Block(_FILE, "attention.output.dense", _FC, _DINO, _SCALES)),
    (True, True): ("encoder.layer.", Block(_MEMORY, "attention.o_proj", _FC, _DINO, _SCALES)),
}  # fmt: skip
"""By (whether it is a DINOv2, whether the names are those in the memory of transformers 5): what the names of blocks
start with, and those of their parts."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the names in a file tell.

    Attributes:
      family: one of :data:`FAMILIES`.
      headed: whether the model is one for classification; its classifier may still be missing.
      prefix: before every name but the classifier's.
      modern: whether the names are those in the memory of transformers 5.
      bias: whether queries, keys and values have biases.
      gated: whether its MLPs are.
    """

    family: str
    headed: bool
    prefix: str
    modern: bool = False
    bias: bool = True
    gated: bool = False

    @property
    def dino(self) -> bool:
        """Whether blocks have layer scale and the classifier sees the average of the grid too."""
        return self.family.startswith("dinov2")

    @property
    def blocks(self) -> str:
        """What precedes the number of a block."""
        return self.prefix + SPELLINGS[self.dino, self.modern][0]

    @property
    def names(self) -> Block:
        """Of the parts of a block."""
        names = SPELLINGS[self.dino, self.modern][1]
        if not self.gated:
            return names
        if self.modern:
            return names._replace(mlp=("mlp.up_proj", "mlp.down_proj"), gate="mlp.gate_proj")
        return names._replace(mlp=("mlp.weights_in", "mlp.weights_out"))


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of one of transformers' image Transformers, even of one not converted."""
    return any(owner + PATCHES in names for owner in OWNERS)


def layout_of(names: Collection[str], settings: Mapping[str, Any]) -> Layout:
    """The layout of a file with tensors of these ``names`` and the ``config.json`` ``settings`` ({} where unknown).

    Raises:
      UserError: a model that is not converted.
    """
    prefix = next(owner for owner in OWNERS if owner + PATCHES in names)
    family = "dinov2" if any(".layer_scale1." in name for name in names) else "vit"
    if prefix + REGISTERS in names:
        family = "dinov2_with_registers"
    if prefix + DIST in names:
        family = "deit"
    if settings.get("model_type") == "vit_mae" or any(name.startswith("decoder.decoder_") for name in names):
        family = "vit_mae"
    owner = {"vit_mae": "vit"}.get(family, family)
    for found, fits in ((settings.get("model_type", family), family), (prefix.removesuffix(".") or owner, owner)):
        if found != fits:
            known = ", ".join(FAMILIES)
            raise UserError(f"these are weights of transformers' {found!r}; of its models {known} are converted.")
    if family == "deit" and f"{HEAD}.weight" in names:
        raise UserError(
            "this classifier sees the class token alone, beside a distillation token; of transformers' DeiT "
            "DeiTForImageClassificationWithTeacher and DeiTModel are converted."
        )
    architectures = settings.get("architectures") or [""]
    said = str(architectures[0]).endswith(("ForImageClassification", "ForImageClassificationWithTeacher"))
    headed = said or any(f"{head}.weight" in names for head in (HEAD, HEADS[0]))
    gated = any(".weights_in." in name or ".gate_proj." in name for name in names)
    layout = Layout(family, headed, prefix, any(".q_proj." in name for name in names), gated=gated)
    bias = f"{layout.blocks}0.{layout.names.qkv[0].format('bias')}" in names
    return dataclasses.replace(layout, bias=bias)


def rules(model: ViT, layout: Layout) -> list[Rule]:
    """Every tensor of a file with this layout and the parameters of ``model`` that it holds."""
    embeddings = layout.prefix + PATCHES.split(".")[0]
    found = [
        rule(f"{embeddings}.cls_token", "cls"),
        rule(layout.prefix + PATCHES, "patch/kernel", CONV),
        rule(f"{layout.prefix}{PATCHES.removesuffix('weight')}bias", "patch/bias"),
        *torch_norm(f"{layout.prefix}layernorm", "encoder/norm"),
    ]
    if model.distilled:
        found.append(rule(layout.prefix + DIST, "dist"))
    if model.positions == "learn":
        found.append(rule(layout.prefix + POSITIONS, "position/embedding"))
    if model.registers:
        found.append(rule(layout.prefix + REGISTERS, "registers"))
    found += torch_blocks(layout.blocks, "encoder/block_", model, layout.names, layout.bias)
    if model.pre_logits is not None:
        found += torch_linear(layout.prefix + POOLER, "pre_logits")
    if model.num_classes and model.distilled:
        found += [*torch_linear(HEADS[0], "head"), *torch_linear(HEADS[1], "head_dist")]
    elif model.num_classes:
        found += torch_linear(HEAD, "head")
    return found
