"""``open_clip_config.json`` and the tensors beside it -> the fields of our image-text models.

Sizes are those of the tensors; what tensors do not show is open_clip's configuration, or its defaults where there is
none. Facts about open_clip are those of 3.3.0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.augment import NORMS
from vit_jax.convert.fields import depth, patches, remainder, rgb, shape, square, unsupported
from vit_jax.convert.open_clip.rules import TRUNK, Layout
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.timm.config import read_config
from vit_jax.convert.timm.image import architecture
from vit_jax.convert.timm.vit import fields as trunk_fields
from vit_jax.data.framing import Framing, Mode, Rounding
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.types import UserError

FILE = "open_clip_config.json"
OWN = "vit_jax"
"""Our key in that file, which open_clip skips: what its own keys cannot say."""
EPSILON = 1e-5
TEMPERATURE = 1 / 0.07
RESIZE_MODES: dict[str, Mode] = {"shortest": "center", "squash": "squash", "longest": "pad"}
"""``resize_mode`` of its images -> ours."""
ROUNDING: Rounding = "torchvision"
UNSUPPORTED = {
    r"visual\.(layer\d|attnpool)\.": "a ResNet as image tower",
    r"text\.(transformer\.(?!resblocks\.)|proj\.|pooler\.)": "a text tower of Hugging Face's",
    r".*\.attn\.(ln_|head_scale|logit_scale)|.*\.ln_attn\.|.*\.mlp\.ln\.": "norms or scales inside of attention or MLP",
    r"visual\.attn_pool_contrastive\.": "parallel or cascaded attentional pooling, open_clip's way",
    r"visual\.head\.mlp\.": "an MLP as head of the image tower",
}
"""Starts of names -> what no model here has."""
POOLS = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
"""``pool_type`` of the text tower -> ours."""
BUFFERS = {
    **dict.fromkeys(("attn_mask", "text.attn_mask", "text_decoder.attn_mask"), "masks are computed"),
    **dict.fromkeys(("input_resolution", "context_length", "vocab_size"), "the weights show these sizes"),
}
"""Tensors of older files that hold no weights -> why they are not needed."""


QUICK = "NAME(image_tower={'activation': 'quick_gelu'}, text_tower={'activation': 'quick_gelu'})"


@dataclasses.dataclass(frozen=True)
class Config:
    """The parts of ``open_clip_config.json``; all empty without one.

    Attributes:
      model: ``model_cfg``.
      images: ``preprocess_cfg``.
      own: what we noted in it.
      openai: whether none came and the tensors are OpenAI's own, which have three sizes beside the weights.
    """

    model: Mapping[str, Any]
    images: Mapping[str, Any]
    own: Mapping[str, Any]
    openai: bool = False

    @classmethod
    def of(cls, about: About, names: Collection[str] = ()) -> Config:
        """From the whole file, or from one of open_clip's ``model_configs`` (``config.json``), and names of tensors."""
        raw: Mapping[str, Any] = about.get(FILE) or about.get("config.json") or {}
        model = raw.get("model_cfg", raw if "vision_cfg" in raw else {})
        return cls(
            model, raw.get("preprocess_cfg") or {}, raw.get(OWN) or {}, not model and "input_resolution" in names
        )

    def tower(self, name: str) -> Mapping[str, Any]:
        """``vision_cfg``, ``text_cfg`` or ``multimodal_cfg``."""
        return self.model.get(name) or {}

    def activation(self, name: str) -> str:
        """Of the MLPs of a tower."""
        approximate = (self.tower(name).get("act_kwargs") or {}).get("approximate", "none")
        if self.model.get("quick_gelu") or self.openai:
            return "quick_gelu"
        if approximate not in ("none", "tanh"):
            raise UserError(f"{FILE} has act_kwargs.approximate={approximate!r}; allowed: 'none' and 'tanh'.")
        return "gelu_tanh" if approximate == "tanh" else "gelu"

    def epsilon(self, name: str) -> float:
        """Of the layer norms of a tower."""
        return float((self.tower(name).get("norm_kwargs") or {}).get("eps", EPSILON))


def read(theirs: Tensors, config: Config) -> tuple[dict[str, Any], Layout, int, list[str]]:
    """Fields of the model, how the file stores it, side of its images in pixels, and what was assumed.

    Raises:
      UserError: the model has parts that none of ours has; a tensor that tells a size is missing.
    """
    for pattern, what in UNSUPPORTED.items():
        if found := next((name for name in theirs if re.match(pattern, name)), None):
            raise _unsupported(what, f"{found} is a part of it")
    scalars = theirs["logit_scale"].shape if "logit_scale" in theirs else ()
    layout = Layout("text." if "text.token_embedding.weight" in theirs else "", scalars=tuple(scalars))
    captions = any(name.startswith("text_decoder.") for name in theirs)
    pooled = "visual.attn_pool.query" in theirs
    if captions != pooled:
        there, lost = ("text_decoder", "visual.attn_pool") if captions else ("visual.attn_pool", "text_decoder")
        raise _unsupported("a captioner (CoCa) by halves", f"there is a {there} but no {lost}")
    notes = [] if config.model else [_assumed(config, "logit_bias" in theirs)]
    if any(name.startswith(TRUNK) for name in theirs):
        image, layout, size, more = _trunk(theirs, config, layout)
        notes += more
    else:
        image, size = _visual(theirs, config, captions)
    text, head = _text(theirs, config, layout.text)
    fields: dict[str, Any] = {"image_tower": image, "text_tower": text, "text_head": head}
    fields["image_head"] = _image_head(theirs, layout)
    fields |= {"embed_dim": _embed_dim(theirs, fields, layout), "temperature": _temperature(config)}
    if "logit_bias" in theirs:
        fields["bias"] = float(config.model.get("init_logit_bias") or 0.0)
    if not captions:
        return {"name": "two_tower", **fields}, layout, size, notes
    return {"name": "coca", **fields, **_captioner(theirs, config)}, layout, size, notes


def _assumed(config: Config, biased: bool) -> str:
    what = "bidirectional texts, pooled at the last token" if biased else "causal texts, pooled at the end token"
    activation, more = "quick_gelu (as the sizes beside the weights are OpenAI's)", ""
    if not config.openai:
        activation, more = "gelu", "; weights of OpenAI's have quick_gelu: say so by --model " + QUICK
    return (
        f"no {FILE} comes with it: {activation}, norm epsilon {EPSILON:g}, heads 64 wide and {what} are assumed{more}"
    )


def _unsupported(what: str, why: str) -> UserError:
    known = "CLIP and SigLIP with a ViT, and CoCa"
    return unsupported(what, why, "open_clip", known)


def _blocks(theirs: Tensors, start: str) -> dict[str, Any]:
    """Depth, width and MLP of a stack of blocks."""
    mlp_dim, width = shape(theirs, f"{start}.resblocks.0.mlp.c_fc.weight", 2)
    return {"width": width, "depth": depth(theirs, rf"{re.escape(start)}\.resblocks\."), "mlp_dim": mlp_dim}


def _scale(theirs: Tensors, start: str, said: Mapping[str, Any]) -> float | None:
    return float(said.get("ls_init_value") or 1e-5) if f"{start}.resblocks.0.ls_1.gamma" in theirs else None


def _visual(theirs: Tensors, config: Config, captions: bool) -> tuple[dict[str, Any], int]:
    said = config.tower("vision_cfg")
    if (pool := said.get("pool_type", "tok")) != "tok":
        raise _unsupported(f"pool_type={pool!r} of the image tower", "only 'tok', the class token, can")
    if captions and config.epsilon("vision_cfg") != EPSILON:
        raise _unsupported("a captioner with norm_kwargs", f"its pooling has the epsilon {EPSILON:g}")
    _, patch = patches(theirs, "visual.conv1.weight")
    blocks = _blocks(theirs, "visual.transformer")
    rows = shape(theirs, "visual.positional_embedding", 2)[0]
    fields = {
        "name": "vit",
        "num_classes": 0,
        "patch": patch,
        **blocks,
        "heads": blocks["width"] // said.get("head_width", 64) or 1,
        "patch_bias": False,
        "pre_norm": "visual.ln_pre.weight" in theirs,
        "final_norm": not captions,
        "layer_scale": _scale(theirs, "visual.transformer", said),
        "activation": config.activation("vision_cfg"),
        "norm_epsilon": config.epsilon("vision_cfg"),
    }
    return fields, patch * square(rows - 1, "visual.positional_embedding")


def _trunk(theirs: Tensors, config: Config, layout: Layout) -> tuple[dict[str, Any], Layout, int, list[str]]:
    said = config.tower("vision_cfg")
    raw = {"architecture": said["timm_model_name"]} if said.get("timm_model_name") else {}
    if raw and said.get("timm_pool"):
        raw["global_pool"] = said["timm_pool"]
    own = {name.removeprefix(TRUNK): t for name, t in theirs.items() if name.startswith(TRUNK)}
    fields, inner, size, notes, assumed = architecture(own, read_config({"config.json": raw}), trunk_fields)
    notes += assumed.values()
    head = f"{TRUNK}head" if fields["num_classes"] else "visual.head.proj"
    return {**fields, "num_classes": 0}, dataclasses.replace(layout, trunk=inner, head=head), size, notes


def _image_head(theirs: Tensors, layout: Layout) -> str:
    if layout.trunk is None:
        return "linear"
    if f"{layout.head}.weight" not in theirs:
        return "none"
    return "biased" if f"{layout.head}.bias" in theirs else "linear"


def _embed_dim(theirs: Tensors, fields: Mapping[str, Any], layout: Layout) -> int:
    if layout.trunk is None:
        return shape(theirs, "visual.proj", 2)[1]
    if fields["image_head"] == "none":
        return fields["image_tower"]["width"]
    return shape(theirs, f"{layout.head}.weight", 2)[0]


def _text(theirs: Tensors, config: Config, start: str) -> tuple[dict[str, Any], str]:
    """Fields of the text tower, and its head."""
    said, has_cls, siglip = config.tower("text_cfg"), f"{start}cls_emb" in theirs, "logit_bias" in theirs
    pool = said.get("pool_type", "last" if siglip and not config.model else "argmax")
    if not has_cls and pool not in POOLS:
        raise _unsupported(f"pool_type={pool!r} of the text tower", f"only {', '.join(POOLS)} can")
    vocab_size = shape(theirs, f"{start}token_embedding.weight", 2)[0]
    blocks = _blocks(theirs, f"{start}transformer")
    fields = {
        "vocab_size": vocab_size,
        "length": shape(theirs, f"{start}positional_embedding", 2)[0] - has_cls,
        "end_id": said.get("eos_id", 2) if pool == "eos" else 1 if pool == "last" else vocab_size - 1,
        **blocks,
        "heads": said.get("heads", 8) if said else blocks["width"] // 64 or 1,
        "causal": not said.get("no_causal_mask", siglip and not config.model),
        "pool": "cls" if has_cls else POOLS[pool],
        "layer_scale": _scale(theirs, f"{start}transformer", said),
        "activation": config.activation("text_cfg"),
        "norm_epsilon": config.epsilon("text_cfg"),
    }
    if has_cls:
        right = said.get("correct_cls_mask", config.own.get("correct_cls_mask", False))
        fields["cls_mask"] = "text" if right else "shifted"
    biased, linear = (f"{start}text_projection{end}" in theirs for end in (".weight", ""))
    return fields, "biased" if biased else "linear" if linear else "none"


def _captioner(theirs: Tensors, config: Config) -> dict[str, Any]:
    said, image = config.tower("multimodal_cfg"), config.tower("vision_cfg")
    if "text_decoder.resblocks.0.ls_1.gamma" in theirs:
        raise _unsupported("layer scale in a caption decoder", "text_decoder.resblocks.0.ls_1.gamma is a part of it")
    blocks = _blocks(theirs, "text_decoder")
    queries, width = shape(theirs, "visual.attn_pool.query", 2)
    decoder = {k: blocks[k] for k in ("depth", "mlp_dim")} | {
        "heads": said.get("heads", 8) if said else blocks["width"] // 64 or 1,
        "activation": "quick_gelu" if config.model.get("quick_gelu") else "gelu",
        "norm_epsilon": EPSILON,
    }
    heads = image.get("attn_pooler_heads", 8) if image else width // 64 or 1
    return {"decoder": decoder, "queries": queries, "pool_heads": heads}


def _temperature(config: Config) -> float:
    """The initial one; a logarithm's rounding is taken back."""
    said = config.model.get("init_logit_scale")
    return TEMPERATURE if said is None else float(f"{math.exp(said):.12g}")


def preprocess(config: Config, size: int, patch: int = 1) -> tuple[Preprocess, list[str]]:
    """How images are prepared, and one note for each thing that is assumed or done differently here.

    Args:
      config: what the file says.
      size: side that the positions are for.
      patch: pixels per token, fewer than which an image may have beyond ``size``.

    Raises:
      UserError: an entry that cannot be understood.
    """
    said, notes = config.images, []
    filtered: Any = said.get("interpolation") or "bicubic"
    if filtered not in ("bicubic", "bilinear"):  # open_clip itself takes "random" for bicubic
        notes += [] if filtered == "random" else [f"interpolation {filtered!r} is not known here: bicubic instead"]
        filtered = "bicubic"
    if (mode := said.get("resize_mode") or "shortest") not in RESIZE_MODES:
        notes.append(f"resize_mode {mode!r} is not known here: the centre square is cut out")
    clip = NORMS["clip"]()
    if not said:
        notes.append(f"images are prepared as for CLIP (mean {clip.mean}, std {clip.std}), as no {FILE} tells")
    told = config.tower("vision_cfg").get("image_size") or size
    told = told[0] if isinstance(told, list) and len(set(told)) == 1 else told
    rest = remainder(told, size, patch)
    if told != size + rest:
        notes.append(f"{FILE} tells of images of {told} pixels, the positions are for {size}: {size} it is")
    frame = Framing(RESIZE_MODES.get(mode, "center"), rounding=ROUNDING, rest=rest)
    if frame.mode == "pad":
        grey = said.get("fill_color") or 0
        frame = dataclasses.replace(frame, fill=(grey, grey, grey) if isinstance(grey, int) else tuple(grey))
    mean, std = rgb(said, "mean", clip.mean, FILE), rgb(said, "std", clip.std, FILE)
    return Preprocess(size, 1.0, filtered, mean, std, frame=frame), notes
