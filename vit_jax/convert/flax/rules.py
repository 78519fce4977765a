"""The parameter trees of the original repository and of big_vision: which of their leaves are which of ours.

Source: ``models_vit.py``, ``models_resnet.py``, ``models_mixer.py`` of google-research/vision_transformer and
``models/vit.py``, ``models/mlp_mixer.py`` of google-research/big_vision. The two differ in what :class:`Layout` holds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from vit_jax.convert import transforms
from vit_jax.convert.rules import Rule, renamed, rule
from vit_jax.convert.transforms import Arrays, Transform
from vit_jax.models import ImageModel, Mixer, ViT

POSITIONS = ("Transformer/posembed_input/pos_embedding", "pos_embedding", "Transformer/pos_embedding")
"""Where the position embeddings are: in the original, in big_vision, in big_vision before 2022."""
NORM, MAP = ("scale", "bias"), ("kernel", "bias")
"""The leaves of a norm and of a linear map."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one file names and lays out a model; the defaults are those of the original's files.

    Attributes:
      prefix: before every name.
      numbers: of a block's attention, second norm and MLP. Flax counted all modules of a parent together when the
        original's files were released; since Linen, (0, 1, 0), it counts each class.
      position: name of the position embeddings.
      cls_position: whether the first of them is that of the class token.
      scanned: whether the blocks are stacked along a first axis, ``encoderblock`` instead of ``encoderblock_0`` ...
      group_norm: rank of GroupNorm's parameters, 4 (``[1,1,1,C]``) in files from before Flax 0.3.6.
    """

    prefix: str = ""
    numbers: tuple[int, int, int] = (1, 2, 3)
    position: str = POSITIONS[0]
    cls_position: bool = True
    scanned: bool = False
    group_norm: int = 1


def rules(model: ImageModel, layout: Layout) -> list[Rule]:
    """Every tensor of a file of ``model``, which is a :class:`ViT` or :class:`Mixer`, in ``layout``."""
    rows = _mixer(model) if isinstance(model, Mixer) else _vit(model, layout)
    if model.num_classes:
        rows += same("head", "head", MAP)
    return renamed(rows, theirs=layout.prefix)


def same(theirs: str, ours: str, leaves: Iterable[str], transform: Transform | None = None) -> list[Rule]:
    """Modules that have ``leaves`` on both sides."""
    return [rule(f"{theirs}/{leaf}", f"{ours}/{leaf}", transform) for leaf in leaves]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return same(f"{theirs}/Dense_0", f"{ours}/mlp_in", MAP) + same(f"{theirs}/Dense_1", f"{ours}/mlp_out", MAP)


def _mixer(model: Mixer) -> list[Rule]:
    rows = same("stem", "patch", MAP)
    for i in range(model.depth):
        theirs, ours = f"MixerBlock_{i}", f"encoder/block_{i}"
        rows += same(f"{theirs}/LayerNorm_0", f"{ours}/norm_tokens", NORM)
        rows += _mlp(f"{theirs}/token_mixing", f"{ours}/tokens")
        rows += same(f"{theirs}/LayerNorm_1", f"{ours}/norm_mlp", NORM)
        rows += _mlp(f"{theirs}/channel_mixing", f"{ours}/mlp")
    return rows + same("pre_head_layer_norm", "encoder/norm", NORM)


def _vit(model: ImageModel, layout: Layout) -> list[Rule]:
    assert isinstance(model, ViT), type(model)
    rows = [] if model.stem is None else _stem(model.stem, layout.group_norm)
    rows += same("embedding", "patch", MAP) + _position(model, layout)
    rows += encoder("Transformer", model.depth, model.heads, layout)
    if model.pool == "map":
        rows += pooling("pool", model.heads)
    if model.pre_logits is not None:
        rows += same("pre_logits", "pre_logits", MAP)
    return rows


def _stem(stages: tuple[int, ...], rank: int) -> list[Rule]:
    """Stages and units count from 1 there; only the first unit of a stage projects its shortcut."""
    flat = None if rank == 1 else transforms.reshape((1,) * (rank - 1) + (-1,), (-1,))
    pairs = [("{}_root", "{}_root")]
    for stage, unit in ((s, u) for s, units in enumerate(stages) for u in range(units)):
        theirs, ours = f"block{stage + 1}/unit{unit + 1}/{{}}", f"stage_{stage}_unit_{unit}/{{}}_"
        pairs += [(f"{theirs}{i}", f"{ours}{i}") for i in (1, 2, 3)]
        pairs += [] if unit else [(f"{theirs}_proj", f"{ours}shortcut")]
    rows = []
    for theirs, ours in pairs:
        rows += same(theirs.format("conv"), f"stem/{ours.format('conv')}", ["kernel"])
        rows += same(theirs.format("gn"), f"stem/{ours.format('norm')}", NORM, flat)
    return rows


def _position(model: ViT, layout: Layout) -> list[Rule]:
    cls, position = rule("cls", "cls"), rule(layout.position, "position/embedding")
    learned = [position] if model.positions == "learn" else []
    if model.pool != "cls":
        return learned
    if learned and not layout.cls_position:
        return [Rule(cls.theirs + position.theirs, cls.ours + position.ours, FOLDED)]
    return [cls, *learned]


def _fold(cls: np.ndarray, position: np.ndarray) -> Arrays:
    own, grid = position[:, :1], position[:, 1:]
    return np.where(own == 0, cls, cls + own), grid  # the sum alone would lose the sign of a negative zero


FOLDED = Transform(lambda cls, grid: (cls, np.concatenate([np.zeros_like(cls), grid], axis=1)), _fold)
"""Their class token has no position, ours a zero one; one that is not zero is added to the token, as the model does."""


def pooling(ours: str, heads: int) -> list[Rule]:
    """Attention pooling."""
    theirs, parts = "MAPHead_0/MultiHeadDotProductAttention_0", {"q": ("query",), "kv": ("key", "value")}
    return [
        rule("MAPHead_0/probe", f"{ours}/probe"),
        *_attention(theirs, f"{ours}/attention", parts, heads),
        *same("MAPHead_0/LayerNorm_0", f"{ours}/norm_mlp", NORM),
        *_mlp("MAPHead_0/MlpBlock_0", f"{ours}/mlp"),
    ]


def encoder(theirs: str, depth: int, heads: int, layout: Layout) -> list[Rule]:
    """The blocks and the norm after them, which are called ``theirs``."""
    attention, norm, mlp = layout.numbers
    block = same("LayerNorm_0", "norm_attention", NORM)
    parts = {"qkv": ("query", "key", "value")}
    block += _attention(f"MultiHeadDotProductAttention_{attention}", "attention", parts, heads)
    block += same(f"LayerNorm_{norm}", "norm_mlp", NORM) + _mlp(f"MlpBlock_{mlp}", "mlp")
    own = [[tuple(f"encoder/block_{i}/{path}" for path in r.ours) for i in range(depth)] for r in block]
    rows = []
    for r, paths in zip(block, own, strict=True):
        if layout.scanned:
            names = [f"{theirs}/encoderblock/{name}" for name in r.theirs]
            rows += [rule(names, list(itertools.chain(*paths)), transforms.stacked(r.transform, depth))]
            continue
        for i, ours in enumerate(paths):
            rows += [rule([f"{theirs}/encoderblock_{i}/{name}" for name in r.theirs], ours, r.transform)]
    return rows + same(f"{theirs}/encoder_norm", "encoder/norm", NORM)


def _attention(theirs: str, ours: str, parts: Mapping[str, tuple[str, ...]], heads: int) -> list[Rule]:
    """Projections ``parts``, our fused one -> theirs in its order, and the one back."""
    rows = []
    for name, letters in parts.items():
        fused = _of_heads(transforms.split_heads(heads, len(letters)), heads, axis=-2)
        rows += [rule([f"{theirs}/{x}/{leaf}" for x in letters], f"{ours}/{name}/{leaf}", fused) for leaf in MAP]
    out = _of_heads(transforms.merge_heads(heads), heads, axis=-3)
    return [
        *rows,
        rule(f"{theirs}/out/kernel", f"{ours}/out/kernel", out),
        *same(f"{theirs}/out", f"{ours}/out", ["bias"]),
    ]


def _of_heads(transform: Transform, heads: int, axis: int) -> Transform:
    """``transform`` of arrays with ``heads`` heads alone: ours have no axis on which another number would show."""

    def into(*xs: np.ndarray) -> Arrays:
        if any(x.shape[axis] != heads for x in xs):
            raise ValueError(f"expected {heads} heads")
        return transform.into(*xs)

    return Transform(into, transform.back)
