"""What timm's image models share, whatever their family; names are those of 1.0.31."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.convert.fields import shape, stride, unsupported
from vit_jax.convert.format import Codec, Limit, Reading, Writing, check_limits
from vit_jax.convert.peer import torch_peer, torch_processor
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule
from vit_jax.convert.timm.config import CLIP_EPSILON, Config, preprocess, read_config
from vit_jax.convert.timm.rules import LUMA
from vit_jax.io import atomic
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import Tensor, Tensors, open_tensors
from vit_jax.layers.norm import EPSILON
from vit_jax.models import ImageModel
from vit_jax.models.describe import build
from vit_jax.types import UserError

UNSUPPORTED = {
    r"patch_embed\.norm\.|stem\.norm\.": "a norm of patches, before positions are added",
    r"pre_logits\.": "a layer before the head, which timm itself leaves out since 2022",
    r".*\.attn\.norm\.": "norms inside of attention",
    r".*\.attn\.gate\.": "gates of attention",
    r".*\.attn\.lambda_": "differential attention",
    r"(?!.*rope_embed\.periods$|.*rope\.freqs(_cos|_sin)?$).*(rope|freqs)": "rotary positions of another kind",
    r".*\.mlp\.w\d+\.": "gated MLPs of another kind",
    r".*rel_pos|(?!blocks\.).*relative_pos": "relative positions of another kind",
    r"blocks\.\d+\.(lambda_|sub_norm\.)": "differential attention",
    r"blocks\.\d+\.(attns|ffns|mlp_bias|[qk]_norm|out_proj)\b": "parallel blocks of another kind",
    r"blocks\.\d+\.(linear_tokens|mlp_channels\.gate)\b": "blocks as of ResMLP or gMLP",
    r"blocks\.\d+\.\d+\.|layers\.\d+\.|stages\.\d+\.|blocks_token_only\.": "stages (as of Swin, Hiera, CaiT)",
    r"patch_embed\.(conv|backbone\.)(?!(stem\.)?(conv|norm)\.|stages\.)": "a convolutional stem of another kind",
}
"""Starts of names -> what no model here has."""
NORMS = "norm.weight|fc_norm.weight"
MISSING = {
    NORMS: "a model without a norm after the blocks, of which no config.json says final_norm=False,",
    "blocks.0.norm1.bias|blocks.0.in_norm.bias": "norms without a bias (RMSNorm)",
    "blocks.0.mlp.fc1.bias|blocks.0.mlp.fc1_x.bias|blocks.0.mlp_channels.fc1.bias|blocks.0.in_proj.bias": (
        "maps without a bias"
    ),
    "patch_embed.proj.bias|stem.proj.bias|norm_pre.weight": "patches without a bias and a norm after them (pre_norm)",
}
"""Names, one of which must be there -> what its absence means."""
UNUSED = {
    r"rope_embed\.periods$|.*\brope\.freqs_(cos|sin)$": "positions are computed",
    r"blocks\.\d+\.attn\.qkv\.bias_mask$": "keys have no bias",
    r"local_cls_norm\.": "pretraining alone uses it",
    r"(mask_token|masked_embed)$": "masked pretraining alone uses it",
    r"(lm_head|cls_pt_layers|predictor|projector)\.|head\.(\d|mlp|last_layer)\b": "pretraining alone uses it",
    r"blocks\.\d+\.attn\.relative_position_index$": "distances are counted",
    r".*\.num_batches_tracked$": "the steps of training, counted",
    r"decoder_(embed|pos_embed|blocks|norm|pred)\b": "the decoder of masked pretraining",
}
"""Starts of names that may be there -> why those tensors are not needed."""


SIZE = 224
"""Side of the images where neither a tensor nor a file tells it."""


class Parts(NamedTuple):
    """What tells the models of a family that are converted from those that are not, and what their files differ in.

    Attributes:
      unsupported: starts of names -> what no model here has.
      missing: names, one of which must be there -> what its absence means.
      classifier: name of the module that gives the logits.
      sized: whether timm's function takes the size of the images.
      shared: fields of the model, of those that all families have, that its own table does not decide.
      usual: what is assumed of those without a file.
      unit: pixels along a side of what one token stands for, of the fields of a model.
    """

    unsupported: Mapping[str, str] = UNSUPPORTED
    missing: Mapping[str, str] = MISSING
    classifier: str = "head"
    sized: bool = True
    shared: tuple[str, ...] = ("activation", "norm_epsilon")
    usual: str = f"gelu and norm epsilon {EPSILON:g}"
    unit: Callable[[Mapping[str, Any]], int] = lambda model: model["patch"] * stride(model.get("stem"))


PLAIN = Parts()
Found = tuple[dict[str, Any], Any, int, list[str], dict[str, str]]
"""Fields of a model, how the file stores it, side of its images in pixels, notes, and what of the fields is assumed."""
Fields = Callable[[Tensors, Config], Found]
"""What a family makes of its tensors: fields that they alone decide."""
Content = Callable[[Stored, Any], tuple[dict[str, Any], list[str]]]
"""A model and the layout of its weights -> content of ``config.json``, and what that cannot say."""


def codec(
    kind: type[ImageModel],
    start: str,
    crop: float,
    fields: Fields,
    rules: Callable[[Any, Any], list[Rule]],
    content: Content,
    write: Callable[[Stored], Writing],
    limits: tuple[Limit, ...],
    spelled: Callable[[Tensors], tuple[Tensors, list[str]]] = lambda theirs: (theirs, []),
    alone: Callable[[Tensors], Mapping[str, Any]] = lambda theirs: {},
    parts: Parts = PLAIN,
) -> Codec:
    """The codec of a family.

    Args:
      kind: its class.
      start: pattern of the beginning of the name of a tensor that tells it from other families.
      crop: what its models are evaluated with, for want of a file.
      fields: of a model, from shapes; what those do not show from ``config.json`` (see :mod:`.config`).
      rules: as of the codec.
      content: of ``config.json``.
      write: as of the codec.
      limits: as of the codec.
      spelled: as of the codec.
      alone: content of ``config.json`` that stands for one that is missing, {} for none.
      parts: of the family.
    """

    def read(theirs: Tensors, about: About) -> Reading:
        config = read_config(
            about if "architecture" in about.get("config.json", {}) else {"config.json": alone(theirs)}
        )
        model, layout, size, notes, assumed = architecture(theirs, config, fields, parts)
        images, more = preprocess(config, size, crop, parts.unit(model), parts.usual)
        unused = {name: why for start, why in UNUSED.items() for name in theirs if re.match(start, name)}
        return Reading(model, images, config.class_names, layout, unused, (*notes, *more), assumed=assumed)

    def peer(path: pathlib.Path, model: Any) -> Callable[..., Any]:
        return torch_peer(_of_colours(build_peer(path, made, content, model, parts.sized)))

    def processor(path: pathlib.Path, model: Any) -> Callable[[pathlib.Path], np.ndarray] | None:
        if "architecture" not in beside(path).get("config.json", {}):
            return None
        with needed("preparing images as timm does", "torch"):
            from timm.data import create_transform, resolve_model_data_config
        theirs = build_peer(path, made, sized=parts.sized)
        return torch_processor(create_transform(**resolve_model_data_config(theirs), is_training=False))

    def at_native(pretrained: Stored) -> Writing:
        native, notes = pretrained.unfitted()
        writing = write(native)
        return dataclasses.replace(writing, notes=(*notes, *writing.notes))

    made = Codec(
        (kind,), lambda names: any(re.match(start, name) for name in names), read, rules, at_native, peer, (), limits,
        spelled=spelled, processor=processor,
    )  # fmt: skip
    return made


def _of_colours(module: Any) -> Callable[..., Any]:
    """timm's ``module``, which may be one of grey images, as a function of coloured ones."""
    if getattr(module, "in_chans", 3) != 1:
        return module  # type: ignore[no-any-return]
    return lambda pixels: module((pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True))


def architecture(theirs: Tensors, config: Config, fields: Fields, parts: Parts = PLAIN) -> Found:
    """All fields of a model of the family that has ``fields`` and ``parts``.

    Raises:
      UserError: the model has parts that none of ours has.
    """
    for pattern, what in parts.unsupported.items():
        if found := next((name for name in theirs if re.match(pattern, name)), None):
            raise refused(what, f"of which {found} is a part")
    if (config.architecture or "").startswith("vit_pe_"):
        raise refused("rotary positions, which no tensor shows", f"{config.architecture} has them")
    for names, what in parts.missing.items():
        untold = names != NORMS or config.args.get("final_norm") is not False
        if untold and not any(name in theirs for name in names.split("|")):
            raise refused(what, f"there is no {names.replace('|', ' or ')}")
    model, layout, size, notes, assumed = fields(theirs, config)
    head = f"{parts.classifier}.weight"
    classes = shape(theirs, head, 2)[0] if head in theirs else 0
    shared: dict[str, Any] = {}
    if "activation" in parts.shared:
        shared["activation"] = config.activation
    if "norm_epsilon" in parts.shared:
        shared["norm_epsilon"] = config.epsilon
    if config.architecture is None and model.get("pre_norm"):
        shared["norm_epsilon"] = CLIP_EPSILON
        notes.append(f"norm epsilon {CLIP_EPSILON:g} is assumed, as of CLIP, which has a norm before the blocks too")
    model = {"num_classes": classes, **shared, **model}
    return model, layout, size, notes, assumed


def refused(what: str, why: str) -> UserError:
    """The error for a part that no model here has."""
    vits = "ViTs (DeiT, CLIP, DINOv2, DINOv3, EVA-02, axial rope)"
    others = "ResNet hybrids, MLP-Mixers, ConvNeXts, NF-ResNets and MobileNets"
    return unsupported(what, why, "timm", f"{vits}, {others}")


def side(config: Config, stride: int) -> tuple[int, list[str]]:
    """Of the images that ``config`` tells of, which no tensor does, and what was assumed.

    Raises:
      UserError: they are no squares whose side ``stride`` divides.
    """
    told = list(config.images.get("input_size") or ())[1:]
    if not told:
        assumed = SIZE // stride * stride
        return assumed, [f"images of {assumed} pixels are assumed, as no tensor tells their size"]
    if told[0] != told[-1] or told[0] % stride:
        raise refused(f"images of {told} pixels", f"only squares can whose side {stride} divides")
    return told[0], []


def usual(config: Config, family: str, **values: Any) -> None:
    """Raises a :class:`UserError` where an argument has another value than the one that a ``family`` here has."""
    for key, value in values.items():
        if (found := config.args.get(key, value)) != value:
            raise refused(f"{key}={found!r} of {family}", f"only {value!r} can")


def check_gate(theirs: Tensors, mlp: str, hidden: int) -> None:
    """Raises :class:`UserError` where an MLP has more inputs than its second map, as a gated one."""
    if (inner := shape(theirs, f"{mlp}.fc2.weight", 2)[1]) != hidden:
        raise refused("this gated MLP", f"{mlp} goes to {hidden} and comes from {inner} channels")


def hidden(theirs: Tensors) -> tuple[int, bool]:
    """Size of the hidden layer of MLPs, and whether gates and values come from one map.

    Raises:
      UserError: a tensor that tells it is missing or fits neither.
    """
    rows, inner = shape(theirs, "blocks.0.mlp.fc1.weight", 2)[0], shape(theirs, "blocks.0.mlp.fc2.weight", 2)[1]
    if rows != 2 * inner:
        check_gate(theirs, "blocks.0.mlp", rows)
    return inner, rows == 2 * inner


def qk_norm(theirs: Collection[str]) -> str | None:
    """The norm of queries and keys that these names tell."""
    if "blocks.0.attn.q_norm.weight" not in theirs:
        return None
    return "layer" if "blocks.0.attn.q_norm.bias" in theirs else "rms"


def renamed_parts(theirs: Tensors, parts: Mapping[str, str], note: str) -> tuple[list[str], dict[str, Tensor]]:
    """The ``note`` where a name has one of ``parts``, and the tensors with those replaced."""
    found = {}
    for name, tensor in theirs.items():
        new = name
        for old, part in parts.items():
            new = new.replace(old, part)
        found[new] = tensor
    return ([note] if found.keys() != theirs.keys() else []), found


UNTOLD = (
    'put a config.json beside it with its "architecture" and "model_args": {"no_embed_class": true} or false, or '
    '{"img_size": [HEIGHT, WIDTH]}'
)
"""What the user can do where the layout of the positions cannot be told."""


def build_peer(
    path: pathlib.Path,
    codec: Codec,
    content: Content | None = None,
    model: ImageModel | None = None,
    sized: bool = True,
) -> Any:
    """timm's own model with the weights at ``path``: a ``torch.nn.Module`` in evaluation mode, float32.

    Args:
      path: the weights; timm reads the ``config.json`` beside them itself.
      codec: of their family.
      content: of a ``config.json`` to stand in for it; None where it is known to be there.
      model: ours, which says what the architecture is where no ``config.json`` does; None infers it.
      sized: whether timm's function takes the size of the images.

    Raises:
      UserError: timm is not installed, or cannot build a model of these tensors.
    """
    with needed("building timm's own model", "torch"):
        import timm
        import torch
    about = beside(path)
    with open_tensors(path) as stored, tempfile.TemporaryDirectory() as folder:
        theirs, _ = codec.spelled(stored)
        found = codec.read(theirs, about)
        config = about.get("config.json", {})
        if "architecture" not in config and content is not None:
            ours = Stored(model or build(found.model), {}, found.preprocess)
            check_limits(ours.model, codec.limits)
            config, _ = content(ours, found.layout)
        atomic.write_text(pathlib.Path(folder, "config.json"), json.dumps(config))
        try:
            args: dict[str, Any] = {"in_chans": 1} if getattr(found.layout, "grey", False) else {}
            args |= {"img_size": found.preprocess.size + found.preprocess.frame.rest} if sized else {}
            peer = timm.create_model(f"local-dir:{folder}", **args)
            state = {name: torch.from_numpy(np.array(t.read(), np.float32)) for name, t in theirs.items()}
            peer.load_state_dict({k: v for k, v in state.items() if k not in found.unused}, strict=True)
        except (RuntimeError, TypeError, ValueError, AssertionError) as e:
            if isinstance(e, UserError):
                raise
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"timm {timm.__version__} builds no model of the weights {path} ({reason}).") from e
    return peer.eval()
