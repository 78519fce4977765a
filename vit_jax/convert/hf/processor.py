"""``preprocessor_config.json`` of Hugging Face transformers <-> :class:`vit_jax.convert.pretrained.Preprocess`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.augment import NORMS
from vit_jax.augment.geometry import Interpolation
from vit_jax.convert.pretrained import RGB, Preprocess
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
    "Siglip": {**HALF, "resample": 3, "size": {"height": 224, "width": 224}, "do_center_crop": False},
}
"""What transformers assumes where the file is silent, by the name of the processor without its ending."""

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), ("Bit", {**IMAGENET, "size": {"shortest_edge": 256}})),
    "clip": ("CLIP", {}),
    "siglip": ("Siglip", {}),
}
"""Family -> the processor that its published models come with, and where that is not at its defaults."""

FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters that are ours as well."""


def read(content: Mapping[str, Any] | None, family: str, size: int) -> tuple[Preprocess, list[str]]:
    """How images are prepared, and one note for each thing that is assumed or done differently here.

    Args:
      content: of the file, None where there is none.
      family: whose images they are, a key of :data:`PUBLISHED`.
      size: side of the model's input.

    Raises:
      UserError: an entry that cannot be understood.
    """
    kind, published = PUBLISHED[family]
    if content is None:
        steps = {**DEFAULTS[kind], **published}
        mean, std = steps["image_mean"], steps["image_std"]
        note = f"no {FILE}: images are prepared as for the published models (mean {mean}, std {std})"
        return Preprocess(size, _cut(steps, kind)[1], FILTERS[steps["resample"]], mean, std), [note]
    notes = []
    named = content.get("image_processor_type") or content.get("feature_extractor_type")
    if named:
        found = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
        if found not in DEFAULTS:
            notes.append(f"what {FILE} leaves open is as in {kind}ImageProcessor, as {named} is unknown here")
        kind = found if found in DEFAULTS else kind
    steps = {**DEFAULTS[kind], **{key: value for key, value in content.items() if value is not None}}
    made, crop, squashed = _cut(steps, kind)
    if not steps.get("do_resize", True):
        notes.append("transformers does not resize these images; here they are resized to the model's input")
    elif made != size:
        notes.append(
            f"{FILE} makes images of {made} px, the positions are for {size} px, which is the size here; in training "
            f"--config.augment.size={made} resizes the positions"
        )
    if squashed:
        notes.append("transformers squashes images to a square; here the centre square is cut out (square ones agree)")
    filters = steps["resample"]
    if filters not in FILTERS:
        notes.append(f"images are resized bicubically, as the filter resample={filters} is not available here")
    mean, std = _norm(steps)
    return Preprocess(size, crop, FILTERS.get(filters, "bicubic"), mean, std), notes


def _cut(steps: Mapping[str, Any], kind: str) -> tuple[int, float, bool]:
    """Side of the images that come out, the fraction of the short side that is kept, whether images are squashed."""
    edge, squashed = _edge(steps["size"], kind)
    if not steps["do_center_crop"]:
        return edge, 1.0, squashed
    made, _ = _edge(steps.get("crop_size"), kind)
    return made, min(made / edge, 1.0), squashed


def _edge(size: Any, kind: str) -> tuple[int, bool]:
    """The side of a size in any of its spellings, and whether both sides get it; a lone number depends on the kind."""
    sides = [size.get(key) for key in ("shortest_edge", "height", "width")] if isinstance(size, Mapping) else [size]
    given = {side for side in sides if side is not None}
    if len(given) != 1 or not all(isinstance(side, int) and side > 0 for side in given):
        raise UserError(
            f"{FILE} has a size of {size!r}, expected one side in pixels; only square inputs are converted."
        )
    both = sides[0] is None if isinstance(size, Mapping) else kind in ("ViT", "DeiT")
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


def write(preprocess: Preprocess, kind: str = "Bit") -> tuple[dict[str, Any], list[str]]:
    """The file's content, and a note of what it says differently.

    The processor is one that cuts the centre out in every version of transformers, BiT's or CLIP's.
    """
    edge = round(preprocess.size / preprocess.crop)
    notes = []
    if abs(preprocess.size / edge - preprocess.crop) > 1e-6:
        notes.append(f"transformers keeps {preprocess.size} of {edge} px, for a crop of {preprocess.crop:g}")
    square = {"height": preprocess.size, "width": preprocess.size}
    filters = {name: number for number, name in FILTERS.items()}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": edge},
        "resample": filters[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }, notes
