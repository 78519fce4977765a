"""timm's ViTs, ResNet hybrids and Mixers; names are those of 1.0.31."""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vit_jax.convert.fields import heads_of, shape, square, unsupported
from vit_jax.convert.format import Codec, Reading, Writing
from vit_jax.convert.peer import packages, torch_peer
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm.config import POOLS, Config, preprocess, read_config, write_config
from vit_jax.convert.timm.rules import Layout, rules
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import Tensor, Tensors, open_tensors
from vit_jax.layers.embed import sincos_positions
from vit_jax.models import ImageModel, Mixer, ViT
from vit_jax.models.describe import build
from vit_jax.types import UserError

UNSUPPORTED = {
    r"fc_norm\.": "a norm after pooling (fc_norm)",
    r"norm_pre\.|patch_embed\.norm\.|stem\.norm\.": "a norm before the blocks (as of CLIP)",
    r"(dist_token$|head_dist\.)": "a distillation token (as of DeiT)",
    r"pre_logits\.": "a layer before the head, which timm itself leaves out since 2022",
    r".*attn\w*\.[qk]_norm\.": "norms of queries and keys (q_norm, k_norm)",
    r".*\.attn\.norm\.|.*\.mlp\.norm\.": "norms inside of attention or MLP",
    r".*\.attn\.lambda_": "differential attention",
    r".*\.attn\.([qkv]_proj\.|[qkv]_bias$)": "separate queries, keys and values (as of EVA and BEiT)",
    r".*rope|.*freqs": "rotary positions",
    r".*rel(ative)?_pos": "relative positions",
    r".*\.mlp\.(w\d+|fc1_[gx])\.|.*\.mlp\.gate\.": "gated MLPs (as of SwiGLU)",
    r"blocks\.\d+\.gamma_\d": "layer scales named gamma_1 (as of EVA and CaiT; those of timm's ViTs are ls1.gamma)",
    r"blocks\.\d+\.(attns|ffns|in_norm|in_proj)\b": "parallel blocks",
    r"blocks\.\d+\.(linear_tokens|mlp_channels\.gate)\b": "blocks as of ResMLP or gMLP",
    r"blocks\.\d+\.\d+\.|layers\.\d+\.|stages\.\d+\.|blocks_token_only\.": "stages (as of Swin, Hiera, CaiT)",
    r"patch_embed\.(conv|backbone\.)(?!(stem\.)?(conv|norm)\.|stages\.)": "a convolutional stem of another kind",
}
"""Starts of names -> what no model here has."""
MISSING = {
    "norm.weight": "a model without a norm after the blocks",
    "blocks.0.norm1.bias": "norms without a bias (RMSNorm)",
    "blocks.0.mlp.fc1.bias|blocks.0.mlp_channels.fc1.bias": "maps without a bias",
    "patch_embed.proj.bias|stem.proj.bias": "patches without a bias",
    "pos_embed|stem.proj.weight": "a model without learned positions",
}
"""Names, one of which must be there -> what its absence means."""
UNUSED = {"mask_token": "masked pretraining alone uses it"}
"""Tensors that may be there -> why they are not needed."""


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these ``names`` are of an image model of timm's."""
    return any(name.startswith(("patch_embed.", "stem.proj.")) for name in names)


def read(theirs: Tensors, about: About) -> Reading:
    """Infers the model from shapes; what those do not show from ``about["config.json"]`` (see :mod:`.config`).

    Raises:
      UserError: the model has parts that none of ours has.
    """
    config = read_config(about)
    fields, layout, size, notes = architecture(theirs, config)
    images, assumed = preprocess(config, size, crop=0.875 if fields["name"] == "mixer" else 0.9)
    return Reading(fields, images, config.class_names, layout, UNUSED, (*notes, *assumed))


def architecture(theirs: Tensors, config: Config) -> tuple[dict[str, Any], Layout, int, list[str]]:
    """Fields of the model, how the file stores it, side of its images in pixels, and what was assumed.

    Raises:
      UserError: the model has parts that none of ours has.
    """
    for pattern, what in UNSUPPORTED.items():
        if found := next((name for name in theirs if re.match(pattern, name)), None):
            raise _unsupported(what, f"of which {found} is a part")
    for names, what in MISSING.items():
        if not any(name in theirs for name in names.split("|")):
            raise _unsupported(what, f"there is no {names.replace('|', ' or ')}")
    fields, layout, size, notes = (_read_mixer if "stem.proj.weight" in theirs else _read_vit)(theirs, config)
    classes = shape(theirs, "head.weight", 2)[0] if "head.weight" in theirs else 0
    fields |= {"num_classes": classes, "activation": config.activation, "norm_epsilon": config.epsilon}
    return fields, layout, size, notes


def _unsupported(what: str, why: str) -> UserError:
    known = "plain ViTs (with registers, layer scale, attention pooling), ResNet hybrids and MLP-Mixers"
    return unsupported(what, why, "timm", known)


def _patches(theirs: Tensors, name: str, channels: int) -> tuple[int, int]:
    """Width and patch size."""
    found = shape(theirs, name, 4)
    if found[1] != channels or found[2] != found[3]:
        raise UserError(f"{name} is {found}; only square patches of {channels} channels can be converted.")
    return found[0], found[3]


def _depth(theirs: Tensors) -> int:
    found = [int(m[1]) for name in theirs if (m := re.match(r"blocks\.(\d+)\.", name))]
    return max(found, default=-1) + 1


def _read_mixer(theirs: Tensors, config: Config) -> tuple[dict[str, Any], Layout, int, list[str]]:
    if (pool := config.args.get("global_pool", "avg")) != "avg":
        raise _unsupported(f"global_pool={pool!r} of a Mixer", "only 'avg' can")
    width, patch = _patches(theirs, "stem.proj.weight", 3)
    token_dim, tokens = shape(theirs, "blocks.0.mlp_tokens.fc1.weight", 2)
    mlp_dim = shape(theirs, "blocks.0.mlp_channels.fc1.weight", 2)[0]
    for name, hidden in (("mlp_tokens", token_dim), ("mlp_channels", mlp_dim)):
        _check_gate(theirs, f"blocks.0.{name}", hidden)
    fields = {"name": "mixer", "patch": patch, "width": width, "depth": _depth(theirs)}
    fields |= {"token_dim": token_dim, "mlp_dim": mlp_dim}
    return fields, Layout(), square(tokens, "blocks.0.mlp_tokens.fc1.weight") * patch, []


def _check_gate(theirs: Tensors, mlp: str, hidden: int) -> None:
    if (inner := shape(theirs, f"{mlp}.fc2.weight", 2)[1]) != hidden:
        raise _unsupported("gated MLPs (as of SwiGLU)", f"{mlp} goes to {hidden} and comes from {inner} channels")


def _read_vit(theirs: Tensors, config: Config) -> tuple[dict[str, Any], Layout, int, list[str]]:
    stem = _stem(theirs)
    channels = 3 if stem is None else 64 if not stem else 256 * 2 ** (len(stem) - 1)
    width, patch = _patches(theirs, "patch_embed.proj.weight", channels)
    stride = _stride(patch, stem)
    depth, mlp_dim = _depth(theirs), shape(theirs, "blocks.0.mlp.fc1.weight", 2)[0]
    _check_gate(theirs, "blocks.0.mlp", mlp_dim)
    has_cls = "cls_token" in theirs
    registers = shape(theirs, "reg_token", 3)[1] if "reg_token" in theirs else 0
    pool = "map" if any(name.startswith("attn_pool.") for name in theirs) else "cls" if has_cls else "gap"
    _check_pool(pool, has_cls, registers, config)
    heads, note = config.args.get("num_heads"), None
    if heads is None:
        heads, note = heads_of(width, depth, mlp_dim)
    notes = [note] if note else []
    layout = Layout(_prefix(theirs, has_cls + registers, stride, config), "blocks.0.attn.qkv.bias" in theirs)
    if not layout.qkv_bias:
        notes.append("its queries, keys and values have no bias, here it is zero")
    rows = theirs["pos_embed"]
    if layout.prefix and registers and rows.read()[:, int(has_cls) : layout.prefix].any():
        notes.append("the positions of its registers are added to the registers, the function is the same")
    fields: dict[str, Any] = {"name": "vit", "patch": patch, "width": width, "depth": depth, "heads": heads}
    fields |= {"mlp_dim": mlp_dim, "pool": pool, "positions": "learn", "registers": registers, "pre_logits": None}
    fields |= {"stem": stem, "stem_numerics": "original" if stem is None else "timm", "layer_scale": None}
    if "blocks.0.ls1.gamma" in theirs:
        fields["layer_scale"] = config.args.get("init_values") or 1e-5
    return fields, layout, square(rows.shape[1] - layout.prefix, "pos_embed") * stride, notes


def _stem(theirs: Tensors) -> tuple[int, ...] | None:
    """Bottlenecks per stage, () for the root alone, None without a stem."""
    if not any(name.startswith("patch_embed.backbone.") for name in theirs):
        return None
    pattern = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.\d+\.conv3\.weight")
    stages = Counter(int(m[1]) for name in theirs if (m := pattern.fullmatch(name)))
    return tuple(stages[i] for i in range(len(stages)))


def _stride(patch: int, stem: tuple[int, ...] | None) -> int:
    """Pixels per token."""
    return patch if stem is None else patch * 2 ** max(len(stem) + 1, 2)


def _check_pool(pool: str, has_cls: bool, registers: int, config: Config) -> None:
    declared = config.args.get("global_pool", POOLS[pool])
    if declared != POOLS[pool] or (pool == "map" and has_cls):
        token = "with a class token" if has_cls else "without a class token"
        raise _unsupported(f"global_pool={declared!r} {token}", f"the tensors are those of {POOLS[pool]!r}")
    if registers and pool != "cls" and config.args.get("pool_include_prefix", False) != (pool == "map"):
        which = "the grid alone, beside registers" if pool == "map" else "registers and grid"
        raise _unsupported(f"global_pool={declared!r} over {which}", "see pool_include_prefix in config.json")


def _prefix(theirs: Tensors, tokens: int, stride: int, config: Config) -> int:
    """Rows before the grid: 0 or ``tokens``, whichever leaves a square."""
    rows = shape(theirs, "pos_embed", 3)[1]
    fits = [n for n in (0, tokens) if rows > n and round((rows - n) ** 0.5) ** 2 == rows - n]
    if tokens == 0 or len(fits) < 2:
        return fits[0] if fits else tokens
    if (apart := config.args.get("no_embed_class")) is not None:
        return 0 if apart else tokens
    told = config.args.get("img_size") or config.images.get("input_size") or 0
    side = (told if isinstance(told, int) else told[-1]) // stride
    return tokens if rows - tokens == side * side else 0


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``.

    Where the class token's position is zero, positions are stored for the grid alone (``no_embed_class``).

    Raises:
      UserError: timm has no such model.
    """
    model: Any = pretrained.model
    is_vit = isinstance(model, ViT)
    prefix, extra, notes = 0, {}, []
    if is_vit and model.pool == "cls" and model.positions == "learn":
        prefix = 1 + model.registers if pretrained.params["position/embedding"].read()[:, 0].any() else 0
    layout = Layout(prefix)
    config, unsaid = write_config(pretrained, layout)
    if is_vit and model.positions == "sincos2d":
        side = pretrained.preprocess.size // _stride(model.patch, model.stem)
        extra["pos_embed"] = Tensor.of(sincos_positions(side, side, model.width)[None])
        notes.append("the fixed positions are written as numbers; read again they count as learned ones")
    return Writing(layout, {"config.json": config}, (*unsaid, *notes), extra)


def build_peer(path: pathlib.Path, model: ImageModel | None = None) -> Any:
    """timm's own model with the weights at ``path``: a ``torch.nn.Module`` in evaluation mode, float32.

    Args:
      path: the weights; timm reads the ``config.json`` beside them itself.
      model: ours, which says what the architecture is where no ``config.json`` does; None infers it.

    Raises:
      UserError: timm is not installed, or cannot build a model of these tensors.
    """
    with packages("building timm's own model"):
        import timm
        import torch
    about = beside(path)
    with open_tensors(path) as theirs, tempfile.TemporaryDirectory() as folder:
        found = read(theirs, about)
        config = about.get("config.json", {})
        if "architecture" not in config:
            ours = Stored(model or build(found.model), {}, found.preprocess)
            config, _ = write_config(ours, found.layout)
        pathlib.Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            peer = timm.create_model(f"local-dir:{folder}", img_size=found.preprocess.size)
            state = {name: torch.from_numpy(np.array(t.read(), np.float32)) for name, t in theirs.items()}
            peer.load_state_dict({k: v for k, v in state.items() if k not in found.unused}, strict=True)
        except (RuntimeError, TypeError, ValueError, AssertionError) as e:
            if isinstance(e, UserError):
                raise
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"timm {timm.__version__} builds no model of the weights {path} ({reason}).") from e
    return peer.eval()


def peer(path: pathlib.Path, model: ImageModel) -> Callable[[np.ndarray], np.ndarray]:
    """:func:`build_peer` as a function: normalised images float32[B,H,W,3] -> logits float32[B,C]."""
    return torch_peer(build_peer(path, model))


CODEC = Codec((ViT, Mixer), matches, read, rules, write, peer)
