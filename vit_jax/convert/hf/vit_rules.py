"""How Hugging Face transformers names the tensors of its ViT and DINOv2 models, and which of ours they are.

Files have the names of transformers 4 (``encoder.layer.0.attention.attention.query``), which version 5 reads and writes
as well, while its modules in memory have others (``layers.0.attention.q_proj``): both are read, the former written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.convert import transforms
from vit_jax.convert.rules import Rule, rule, torch_linear, torch_norm
from vit_jax.convert.transforms import CONV
from vit_jax.models import ViT
from vit_jax.types import UserError

PATCHES = "embeddings.patch_embeddings.projection.weight"
POSITIONS = "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"
MASK = "embeddings.mask_token"
POOLER = "pooler.dense"
HEAD = "classifier"
"""The only name without the model's prefix."""
FAMILIES = ("vit", "dinov2", "dinov2_with_registers")
"""By ``model_type``."""


class Names(NamedTuple):
    """How a family calls the parts of a block: queries, keys, values and output; norms; MLP."""

    blocks: str
    attention: tuple[str, str, str, str]
    norms: tuple[str, str]
    mlp: tuple[str, str]


_FILE = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
_MEMORY = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
_VIT, _DINO, _FC = ("layernorm_before", "layernorm_after"), ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
SPELLINGS: dict[tuple[bool, bool], Names] = {
    (False, False): Names("encoder.layer", _FILE, _VIT, ("intermediate.dense", "output.dense")),
    (False, True): Names("layers", _MEMORY, _VIT, _FC),
    (True, False): Names("encoder.layer", _FILE, _DINO, _FC),
    (True, True): Names("encoder.layer", _MEMORY, _DINO, _FC),
}
"""By (whether it is a DINOv2, whether the names are those in the memory of transformers 5)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the names in a file tell.

    Attributes:
      family: one of :data:`FAMILIES`.
      headed: whether the model is one for classification; its classifier may still be missing.
      prefix: before every name but the classifier's.
      modern: whether the names are those in the memory of transformers 5.
      bias: whether queries, keys and values have biases.
    """

    family: str
    headed: bool
    prefix: str
    modern: bool = False
    bias: bool = True

    @property
    def dino(self) -> bool:
        """Whether blocks have layer scale and the classifier sees the average of the grid too."""
        return self.family != "vit"

    @property
    def names(self) -> Names:
        """Of the parts of a block."""
        return SPELLINGS[self.dino, self.modern]


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of one of transformers' image Transformers, even of one not converted."""
    return any(name.endswith(PATCHES) for name in names)


def layout_of(names: Collection[str], settings: Mapping[str, Any]) -> Layout:
    """The layout of a file with tensors of these ``names`` and the ``config.json`` ``settings`` ({} where unknown).

    Raises:
      UserError: a model that is not converted.
    """
    prefix = next(name for name in names if name.endswith(PATCHES)).removesuffix(PATCHES)
    family = "dinov2" if any(".layer_scale1." in name for name in names) else "vit"
    if prefix + REGISTERS in names:
        family = "dinov2_with_registers"
    for found in (settings.get("model_type", family), prefix.removesuffix(".") or family):
        if found != family:
            known = ", ".join(FAMILIES)
            raise UserError(f"these are weights of transformers' {found!r}; of its models {known} are converted.")
    if any(".weights_in." in name or ".gate_proj." in name for name in names):
        raise UserError(
            "the MLPs of this model are SwiGLU (use_swiglu_ffn), which no model here has; take another size."
        )
    architectures = settings.get("architectures") or [""]
    headed = f"{HEAD}.weight" in names or str(architectures[0]).endswith("ForImageClassification")
    layout = Layout(family, headed, prefix, any(".q_proj." in name for name in names))
    bias = f"{prefix}{layout.names.blocks}.0.{layout.names.attention[0]}.bias" in names
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
    if model.positions == "learn":
        found.append(rule(layout.prefix + POSITIONS, "position/embedding"))
    if model.registers:
        found.append(rule(layout.prefix + REGISTERS, "registers"))
    for i in range(model.depth):
        found += _block(model, layout, f"{layout.prefix}{layout.names.blocks}.{i}", f"encoder/block_{i}")
    if model.pre_logits is not None:
        found += torch_linear(layout.prefix + POOLER, "pre_logits")
    if model.num_classes:
        found += torch_linear(HEAD, "head")
    return found


def _block(model: ViT, layout: Layout, theirs: str, ours: str) -> list[Rule]:
    *qkv, out = (f"{theirs}.{part}" for part in layout.names.attention)
    split = transforms.split_linear(model.heads)
    found = [rule([f"{part}.weight" for part in qkv], f"{ours}/attention/qkv/kernel", split)]
    biases = [f"{part}.bias" for part in qkv] if layout.bias else []
    found.append(rule(biases, f"{ours}/attention/qkv/bias", split if layout.bias else _zeros(3 * model.width)))
    found += torch_linear(out, f"{ours}/attention/out")
    for i, part in enumerate(("attention", "mlp")):
        found += torch_norm(f"{theirs}.{layout.names.norms[i]}", f"{ours}/norm_{part}")
        found += torch_linear(f"{theirs}.{layout.names.mlp[i]}", f"{ours}/mlp/{('mlp_in', 'mlp_out')[i]}")
        if model.layer_scale is not None:
            found.append(rule(f"{theirs}.layer_scale{i + 1}.lambda1", f"{ours}/scale_{part}"))
    return found


def _zeros(count: int) -> transforms.Transform:
    """Nothing there -> zeros here; no layout that is written is without them."""
    return transforms.Transform(lambda: (np.zeros(count, np.float32),), lambda x: ())
