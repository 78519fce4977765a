"""Which of open_clip's tensors are which of our parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from vit_jax.convert.rules import (
    Block,
    Rule,
    renamed,
    rule,
    torch_blocks,
    torch_cross,
    torch_linear,
    torch_mlp,
    torch_norm,
)
from vit_jax.convert.timm import rules as timm_rules
from vit_jax.convert.transforms import CONV, LEADING, LINEAR, TOKEN, reshape, split_linear
from vit_jax.models import CoCa

TRUNK = "visual.trunk."
"""Before the names of an image tower of timm's."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file stores a model.

    Attributes:
      text: before the names of the text tower: ``"text."``, or nothing as in OpenAI's.
      trunk: how timm stores the image tower, None where it is open_clip's own.
      head: name of the map from the features of such a trunk to the embedding.
      scalars: shape of temperature and bias, ``()`` or ``(1,)``.
    """

    text: str = ""
    trunk: timm_rules.Layout | None = None
    head: str = "visual.head.proj"
    scalars: tuple[int, ...] = ()


FC = (".c_fc", ".c_proj")
BLOCK = Block(
    ("attn.in_proj_{}",), "attn.out_proj", ("mlp.c_fc", "mlp.c_proj"), ("ln_1", "ln_2"), ("ls_1.gamma", "ls_2.gamma")
)


def rules(model: Any, layout: Layout) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``, a TwoTower."""
    scalar = reshape(layout.scalars, ())
    out = [rule("logit_scale", "logit_scale", scalar)]
    if model.bias is not None:
        out.append(rule("logit_bias", "logit_bias", scalar))
    out += _visual(model) if layout.trunk is None else _trunk(model, layout, layout.trunk)
    out += _text(model, layout.text)
    return [*out, *_captioner(model)] if isinstance(model, CoCa) else out


def _trunk(model: Any, layout: Layout, trunk: timm_rules.Layout) -> Iterator[Rule]:
    yield from renamed(timm_rules.rules(model.image_tower, trunk), TRUNK, "image_tower/")
    if model.image_head != "none":
        yield from torch_linear(layout.head, "image_head")[: 1 + (model.image_head == "biased")]


def _visual(model: Any) -> Iterator[Rule]:
    tower, a, b = model.image_tower, "visual", "image_tower"
    yield rule(f"{a}.conv1.weight", f"{b}/patch/kernel", CONV)
    yield rule(f"{a}.class_embedding", f"{b}/cls", TOKEN)
    yield rule(f"{a}.positional_embedding", f"{b}/position/embedding", LEADING)
    if tower.pre_norm:
        yield from torch_norm(f"{a}.ln_pre", f"{b}/norm_pre")
    yield from torch_blocks(f"{a}.transformer.resblocks.", f"{b}/encoder/block_", tower, BLOCK)
    yield from torch_norm(f"{a}.ln_post", "pool_norm" if isinstance(model, CoCa) else f"{b}/encoder/norm")
    yield rule(f"{a}.proj", "image_head/kernel")


def _text(model: Any, a: str) -> Iterator[Rule]:
    tower, b = model.text_tower, "text_tower"
    yield rule(f"{a}token_embedding.weight", f"{b}/token/embedding")
    yield rule(f"{a}positional_embedding", f"{b}/position/embedding", LEADING)
    has_cls = tower.pool == "cls"
    if has_cls:
        yield rule(f"{a}cls_emb", f"{b}/cls", TOKEN)
    yield from torch_blocks(f"{a}transformer.resblocks.", f"{b}/encoder/block_", tower, BLOCK)
    yield from torch_norm(f"{a}ln_final", f"{b}/norm" if has_cls else f"{b}/encoder/norm")
    if model.text_head == "linear":
        yield rule(f"{a}text_projection", "text_head/kernel")
    elif model.text_head == "biased":
        yield from torch_linear(f"{a}text_projection", "text_head")


def _captioner(model: CoCa) -> Iterator[Rule]:
    a, b = "visual.attn_pool", "memory_pool"
    yield rule(f"{a}.query", f"{b}/queries", LEADING)
    yield from (*torch_norm(f"{a}.ln_q", f"{b}/norm_queries"), *torch_norm(f"{a}.ln_k", f"{b}/norm_tokens"))
    fused = model.image_tower.width == model.embed_dim
    yield from _cross(f"{a}.attn", f"{b}/attention", model.pool_heads, fused)
    a, b, decoder = "text_decoder", "decoder/encoder", model.decoder
    for r in torch_blocks(f"{a}.resblocks.", f"{b}/block_", decoder, BLOCK):
        yield Rule(r.theirs, tuple(re.sub(r"/(norm_mlp|mlp)/", r"/\1_self/", x) for x in r.ours), r.transform)
    for i in range(decoder.depth):
        cross, ours = f"{a}.cross_attn.{i}", f"{b}/block_{i}"
        yield from torch_norm(f"{cross}.ln_1", f"{ours}/norm_cross_attention")
        yield from torch_norm(f"{cross}.ln_1_kv", f"{ours}/norm_context")
        yield from _cross(f"{cross}.attn", f"{ours}/cross_attention", decoder.heads, fused=True)
        yield from (*torch_norm(f"{cross}.ln_2", f"{ours}/norm_mlp"), *torch_mlp(f"{cross}.mlp", f"{ours}/mlp", FC))
    yield from torch_norm(f"{a}.ln_final", f"{b}/norm")
    yield rule(f"{a}.text_projection", "vocabulary")


def _cross(theirs: str, ours: str, heads: int, fused: bool) -> Iterable[Rule]:
    """As :func:`.torch_cross`, but with three weights where the two inputs are not ``fused``: not as wide."""
    weight, *rest = torch_cross(theirs, ours, heads)
    if fused:
        return [weight, *rest]
    names = [f"{theirs}.{x}_proj_weight" for x in "kv"]
    q = rule(f"{theirs}.q_proj_weight", f"{ours}/q/kernel", LINEAR)
    return [q, rule(names, f"{ours}/kv/kernel", split_linear(heads, 2)), *rest]
