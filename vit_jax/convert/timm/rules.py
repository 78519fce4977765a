"""Which tensors of timm's ViTs are which of our parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vit_jax.convert.rules import Block, Rule, rule, torch_blocks, torch_linear, torch_mlp, torch_norm
from vit_jax.convert.transforms import CONV, Arrays, Transform, fused_linear, hidden_and_fused
from vit_jax.layers.rotary import RopeMixed
from vit_jax.models import ImageModel, ViT


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file stores a ViT.

    Attributes:
      prefix: rows of ``pos_embed`` before those of the grid: none, or one for the class token and every register.
      qkv_bias: whether queries, keys and values have a bias.
      grey: whether its images have one channel.
      eva: whether scales of branches are called as in timm's Eva, ``gamma_1``.
      split: whether queries, keys and values are maps of their own.
      gate: whether the gates of MLPs are.
    """

    prefix: int = 0
    qkv_bias: bool = True
    grey: bool = False
    eva: bool = False
    split: bool = False
    gate: bool = False

    @property
    def block(self) -> Block:
        """How the parts of a block are called."""
        names = Block(("attn.qkv.{}",), "attn.proj", ("mlp.fc1", "mlp.fc2"), ("norm1", "norm2"))
        names = names._replace(scales=("gamma_1", "gamma_2") if self.eva else ("ls1.gamma", "ls2.gamma"))
        if self.split:
            qkv = ("attn.q_proj.{}", "attn.k_proj.{}", "attn.v_proj.{}")
            names = names._replace(qkv=qkv, biases=("attn.q_proj.bias", "attn.v_proj.bias"))
        return names._replace(mlp=("mlp.fc1_x", "mlp.fc2"), gate="mlp.fc1_g") if self.gate else names


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""How much of red, green and blue is in a grey value (ITU-R BT.601), as in Pillow and torchvision."""
GREY = Transform(
    lambda x: (x.transpose(2, 3, 1, 0) * LUMA[:, None].astype(x.dtype),),
    lambda x: (x.sum(2, keepdims=True).transpose(3, 2, 0, 1),),
)
"""A convolution over grey images <-> the same over coloured ones, which it makes grey."""


MIXED = "rope.freqs"
"""Frequencies of RoPE-Mixed, ``[2, blocks, heads, pairs]``."""
OF_BLOCKS = Transform(lambda x: tuple(np.moveaxis(x, 1, 0)), lambda *xs: (np.stack(xs, axis=1),))


def patch_rules(theirs: str, transform: Transform = CONV, bias: bool = True) -> list[Rule]:
    """Of the patches' embedding, a convolution."""
    found = [rule(f"{theirs}.weight", "patch/kernel", transform)]
    return [*found, rule(f"{theirs}.bias", "patch/bias")] if bias else found


def head_rules(model: ImageModel) -> list[Rule]:
    """Of what follows the blocks."""
    return [*torch_norm("norm", "encoder/norm"), *(torch_linear("head", "head") if model.num_classes else [])]


def rules(model: Any, layout: Layout) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``, a ViT."""
    out = _token_rules(model, layout)
    out += patch_rules("patch_embed.proj", GREY if layout.grey else CONV, model.patch_bias)
    out += torch_norm("norm_pre", "norm_pre") if model.pre_norm else []
    if isinstance(model.rotary, RopeMixed):
        ours = [f"encoder/block_{i}/attention/rotary/frequencies" for i in range(model.depth)]
        out.append(rule(MIXED, ours, OF_BLOCKS))
    if model.stem is not None:
        out += _stem_rules(model.stem)
    if model.parallel:
        out += _parallel_rules(model)
    else:
        out += torch_blocks("blocks.", "encoder/block_", model, layout.block, layout.qkv_bias)
    if model.pool == "map":
        out += pool_rules(model.heads)
    out += torch_linear("head_dist", "head_dist") if model.distilled and model.num_classes else []
    own = head_rules(model) if model.final_norm else head_rules(model)[2:]
    return out + own + (torch_norm("fc_norm", "norm_pool") if model.pool_norm else [])


def _parallel_rules(model: ViT) -> list[Rule]:
    """Of blocks whose branches are side by side, timm's ``ParallelScalingBlock``."""
    out, both = [], hidden_and_fused(model.heads, model.width)
    for i in range(model.depth):
        a, b = f"blocks.{i}", f"encoder/block_{i}"
        for part, ours in (("weight", "kernel"), ("bias", "bias")):
            out.append(rule(f"{a}.in_proj.{part}", (f"{b}/mlp/mlp_in/{ours}", f"{b}/attention/qkv/{ours}"), both))
        out += torch_norm(f"{a}.in_norm", f"{b}/norm_attention")
        out += torch_linear(f"{a}.attn_out_proj", f"{b}/attention/out")
        out += torch_linear(f"{a}.mlp_out_proj", f"{b}/mlp/mlp_out")
        out += [] if model.layer_scale is None else [rule(f"{a}.ls.gamma", f"{b}/scale_attention")]
    return out


def pool_rules(heads: int) -> list[Rule]:
    """Of pooling by attention."""
    a, b, kv = "attn_pool", "pool/attention", fused_linear(heads, 2)
    out = [rule(f"{a}.latent", "pool/probe"), *torch_linear(f"{a}.q", f"{b}/q"), *torch_linear(f"{a}.proj", f"{b}/out")]
    out += [rule(f"{a}.kv.weight", f"{b}/kv/kernel", kv), rule(f"{a}.kv.bias", f"{b}/kv/bias", kv)]
    return [*out, *torch_norm(f"{a}.norm", "pool/norm_mlp"), *torch_mlp(f"{a}.mlp", "pool/mlp")]


def _stem_rules(stages: tuple[int, ...]) -> list[Rule]:
    def pair(theirs: tuple[str, str], ours: str, name: str) -> list[Rule]:
        kernel = rule(f"{theirs[0]}.weight", f"{ours}/conv_{name}/kernel", CONV)
        return [kernel, *torch_norm(theirs[1], f"{ours}/norm_{name}")]

    root = f"patch_embed.backbone{'.stem' if stages else ''}"
    out = pair((f"{root}.conv", f"{root}.norm"), "stem", "root")
    for s, units in enumerate(stages):
        for u in range(units):
            a, b = f"patch_embed.backbone.stages.{s}.blocks.{u}", f"stem/stage_{s}_unit_{u}"
            for i in (1, 2, 3):
                out += pair((f"{a}.conv{i}", f"{a}.norm{i}"), b, str(i))
            if u == 0:
                out += pair((f"{a}.downsample.conv", f"{a}.downsample.norm"), b, "shortcut")
    return out


def _token_rules(model: ViT, layout: Layout) -> list[Rule]:
    has_cls = model.cls_token or model.pool in ("cls", "cls_gap")
    out = [rule("cls_token", "cls")] if has_cls else []
    out += [rule("dist_token", "dist")] if model.distilled else []
    if model.positions != "learn":
        return out + ([rule("reg_token", "registers")] if model.registers else [])
    joined = rule("pos_embed", "position/embedding")
    if model.registers:
        joined = rule(("reg_token", "pos_embed"), ("registers", "position/embedding"))
    return [*out, dataclasses.replace(joined, transform=_positions(has_cls + model.distilled, layout.prefix))]


def _positions(cls: int, prefix: int) -> Transform:
    """``reg_token`` (if any) and ``pos_embed`` <-> registers and positions, which only class token and grid have.

    Args:
      cls: number of class tokens, that of distillation among them.
      prefix: number of rows of ``pos_embed`` before the grid's.
    """

    def into(*theirs: np.ndarray) -> Arrays:
        *tokens, rows = theirs
        if not prefix:
            return *tokens, np.concatenate([np.zeros_like(rows[:, :cls]), rows], axis=1)
        own = rows[:, cls:prefix]
        tokens = [np.where(own == 0, t, t + own) for t in tokens]
        return *tokens, np.concatenate([rows[:, :cls], rows[:, prefix:]], axis=1)

    def back(*ours: np.ndarray) -> Arrays:
        *tokens, rows = ours
        if not prefix:
            return *tokens, rows[:, cls:]
        none = np.zeros((1, prefix - cls, rows.shape[2]), rows.dtype)
        return *tokens, np.concatenate([rows[:, :cls], none, rows[:, cls:]], axis=1)

    return Transform(into, back)
