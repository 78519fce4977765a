"""``preprocessor_config.json`` of Hugging Face transformers <-> :class:`vit_jax.convert.preprocess.Preprocess`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.augment import NORMS
from vit_jax.convert.fields import remainder
from vit_jax.convert.preprocess import RGB, Preprocess, fraction, said
from vit_jax.data.framing import Filter, Framing, Mode, Rounding
from vit_jax.types import UserError

FILE = "preprocessor_config.json"
HALF, IMAGENET, CLIP = (
    {"image_mean": norm.mean, "image_std": norm.std} for norm in (NORMS[n]() for n in ("inception", "imagenet", "clip"))
)
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**HALF, "resample": 2, "size": {"height": 224, "width": 224}, "do_center_crop": False},
    "DeiT": {**HALF, "resample": 3, "size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True},
    "Bit": {**CLIP, "resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
    "CLIP": {**CLIP, "resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
    "DINOv3ViT": {
        **IMAGENET,
        "resample": 2,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
    },
    "Siglip": {**HALF, "resample": 3, "size": {"height": 224, "width": 224}, "do_center_crop": False},
    "Siglip2": {**HALF, "resample": 2, "max_num_patches": 256},
}
"""What transformers assumes where the file is silent, by the name of the processor without its ending."""

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    "vit_mae": ("ViT", {**IMAGENET, "resample": 3}),
    "deit": ("DeiT", IMAGENET),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), ("Bit", {**IMAGENET, "size": {"shortest_edge": 256}})),
    "dinov3_vit": ("DINOv3ViT", {}),
    **dict.fromkeys(("clip", "metaclip_2"), ("CLIP", {})),
    "siglip": ("Siglip", {}),
    "siglip2": ("Siglip2", {}),
}
"""Family -> the processor that its published models come with, and where that is not at its defaults."""

FILTERS: dict[int, Filter] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
"""Pillow's numbers of its filters."""
MODES: tuple[Mode, ...] = ("center", "squash", "patches")
ROUNDING: Rounding = "transformers"
RESIZES = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Families that take whatever image they get, as they resize or compute their positions; others refuse it."""


def read(content: Mapping[str, Any] | None, family: str, size: int, patch: int = 1) -> tuple[Preprocess, list[str]]:
    """How images are prepared, and one note for each thing that is assumed or done differently here.

    Args:
      content: of the file, None where there is none.
      family: whose images they are, a key of :data:`PUBLISHED`.
      size: side that the positions are for.
      patch: pixels per token, fewer than which an image may have beyond ``size``.

    Raises:
      UserError: an entry that cannot be understood.
    """
    kind, published = PUBLISHED[family]
    steps, notes = {**DEFAULTS[kind], **published}, []
    if content is None:
        note = "no {}: images are prepared as for the published models (mean {image_mean}, std {image_std})"
        notes.append(note.format(FILE, **steps))
    else:
        named = content.get("image_processor_type") or content.get("feature_extractor_type")
        found = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named or kind))
        if found not in DEFAULTS:
            notes.append(f"what {FILE} leaves open is as in {kind}ImageProcessor, as {named} is unknown here")
        kind = found if found in DEFAULTS else kind
        steps = {**DEFAULTS[kind], **{key: value for key, value in content.items() if value is not None}}
    if kind == "Siglip2":
        return _in_patches(steps, patch, notes)
    made, edge, squashed = _cut(steps, kind)
    rest = remainder(made, size, patch)
    if not steps.get("do_resize", True):
        notes.append("transformers does not resize these images; here they are resized to the model's input")
    elif made != size + rest and family in RESIZES and content is not None:
        size, rest = made // patch * patch, made % patch
    elif made != size + rest and content is not None:
        notes.append(
            f"{FILE} makes images of {made} px, the positions are for {size} px, which is the size here; in training "
            f"--config.augment.size={made} resizes the positions"
        )
    if steps["resample"] not in FILTERS:
        notes.append(f"images are resized bicubically, as the filter resample={steps['resample']} is unknown here")
    if not (squashed or steps["do_center_crop"]):
        notes.append("transformers leaves these images as long as they are; here the centre square is cut out")
    frame = Framing("squash" if squashed else "center", rounding=ROUNDING, rest=rest)
    return Preprocess(
        size, fraction(made, edge), FILTERS.get(steps["resample"], "bicubic"), *_norm(steps), frame=frame
    ), notes


def _in_patches(steps: Mapping[str, Any], patch: int, notes: list[str]) -> tuple[Preprocess, list[str]]:
    """Of images that keep their shape, in as many patches as a square can have."""
    most = steps["max_num_patches"]
    if not isinstance(most, int) or most < 1:
        raise UserError(f"{FILE} allows an image max_num_patches={most!r} patches; expected a positive number.")
    side = math.isqrt(most)
    if side * side != most:
        notes.append(f"images have at most {side * side} patches here, a square number, not {most}")
    frame = Framing("patches", rounding=ROUNDING, patch=patch)
    filtered = FILTERS.get(steps["resample"], "bilinear")
    return Preprocess(side * patch, 1.0, filtered, *_norm(steps), frame=frame), notes


def _cut(steps: Mapping[str, Any], kind: str) -> tuple[int, int, bool]:
    """Side of the images that come out and of the resized ones, and whether those are squashed."""
    edge, squashed = _edge(steps["size"], kind)
    made = _edge(steps.get("crop_size"), kind)[0] if steps["do_center_crop"] else edge
    return made, edge if steps.get("do_resize", True) else made, squashed


def _edge(size: Any, kind: str) -> tuple[int, bool]:
    """The side of a size in any of its spellings, and whether both sides get it; a lone number depends on the kind."""
    sides = [size.get(key) for key in ("shortest_edge", "height", "width")] if isinstance(size, Mapping) else [size]
    given = {side for side in sides if side is not None}
    if len(given) != 1 or not all(isinstance(side, int) and side > 0 for side in given):
        raise UserError(
            f"{FILE} has a size of {size!r}, expected one side in pixels; only square inputs are converted."
        )
    both = sides[0] is None if isinstance(size, Mapping) else kind in ("ViT", "DeiT", "DINOv3ViT")
    return given.pop(), both


def _norm(steps: Mapping[str, Any]) -> tuple[RGB, RGB]:
    """Mean and standard deviation of images in [0, 1], whatever range transformers normalises."""
    mean, std = (
        steps[key] if steps.get("do_normalize", True) else x for key, x in (("image_mean", 0), ("image_std", 1))
    )
    factor = steps.get("rescale_factor", 1 / 255) if steps.get("do_rescale", True) else 1
    try:
        top = round(255 * float(factor), 6)  # what a white pixel is before it is normalised
        return _rgb(mean, top), _rgb(std, top)
    except (TypeError, ValueError, ZeroDivisionError):
        raise UserError(
            f"{FILE} normalises by image_mean={mean}, image_std={std}, rescale_factor={factor}; expected three "
            "numbers each and a factor that is not 0."
        ) from None


def _rgb(values: Any, top: float) -> RGB:
    r, g, b = (float(x) / top for x in ([values] * 3 if isinstance(values, int | float) else values))
    return r, g, b


KEPT = "transformers leaves these images in their own shape; here they are squares"


def write(preprocess: Preprocess, *, pair: bool = False, patch: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """The file's content, and a note of what it says differently.

    The processor is one that does the same in every version of transformers; ``pair`` says that the model takes texts,
    ``patch`` that it takes images in their own shape, in patches of that side.
    """
    shown, notes = said(preprocess, "transformers", ROUNDING, modes=MODES, filters=FILTERS.values())
    filters = {name: number for number, name in FILTERS.items()}
    steps = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": filters[shown.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(shown.mean),
        "image_std": list(shown.std),
    }
    if patch is not None:
        notes += [] if preprocess.frame.mode == "patches" else [KEPT]
        most = {"patch_size": patch, "max_num_patches": (shown.size // patch) ** 2}
        return {"image_processor_type": "Siglip2ImageProcessor", **most, **steps}, notes
    made = shown.size + shown.frame.rest
    edge, squashed = shown.host_frame.edge, shown.frame.mode == "squash"
    cut = not squashed or edge != made
    kind = ("CLIP" if pair else "Bit") if cut else ("Siglip" if pair else "ViT")
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "size": {"height": edge, "width": edge} if squashed else {"shortest_edge": edge},
        "do_center_crop": cut,
        **({"crop_size": {"height": made, "width": made}} if cut else {}),
        **steps,
    }, notes
