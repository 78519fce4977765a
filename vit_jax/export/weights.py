"""A checkpoint as weights in timm's layout, which PyTorch code loads with ``timm.create_model``."""

from __future__ import annotations

import pathlib

from vit_jax.convert.write import save
from vit_jax.export import base
from vit_jax.predict import ImageText
from vit_jax.types import UserError


def write(predictor: base.Loaded, out: pathlib.Path) -> base.Exported:
    """Writes ``out/model.safetensors`` and ``out/config.json``, a folder that timm loads.

    Raises:
      UserError: ``out`` exists or cannot be written; timm has no such model.
    """
    if isinstance(predictor, ImageText):
        raise UserError(
            f"{predictor.source['checkpoint']} is an image-text model, and timm has classifiers alone: write it with"
            " vit_jax convert --to open_clip, or export its towers with --to onnx or stablehlo."
        )
    notes = save(predictor.pretrained.stored(), base.destination(out), "timm")
    (program,), images = base.programs(predictor), predictor.pretrained.preprocess
    size = images.size + images.frame.rest
    _, width = program.output["shape"]
    meaning = "features" if not predictor.model.num_classes else f"logits ({predictor.pretrained.output_activation})"
    signature = (
        f"images float32[batch, 3, {size}, {size}]: cropped, resized and normalised as config.json says",
        f"{meaning} float32[batch, {width}]",
    )
    usage = ("model = timm.create_model('local-dir:.', pretrained=True).eval()", "print(model(images))")
    return base.Exported(out, signature, usage, notes=tuple(notes))
