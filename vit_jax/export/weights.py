"""A checkpoint as weights in timm's layout, which PyTorch code loads with ``timm.create_model``."""

from __future__ import annotations

import pathlib

from vit_jax.convert.write import save
from vit_jax.export import base
from vit_jax.predict import Predictor


def write(predictor: Predictor, out: pathlib.Path) -> base.Exported:
    """Writes ``out/model.safetensors`` and ``out/config.json``, a folder that timm loads.

    Raises:
      UserError: ``out`` exists or cannot be written; timm has no such model.
    """
    notes = save(predictor.pretrained.stored(), base.destination(out), "timm")
    about, images = base.describe(predictor), predictor.pretrained.preprocess
    size = images.size + images.frame.rest
    _, width = about["output"]["shape"]
    meaning = "features" if not predictor.model.num_classes else f"logits ({predictor.pretrained.output_activation})"
    signature = (
        f"images float32[batch, 3, {size}, {size}]: cropped, resized and normalised as config.json says",
        f"{meaning} float32[batch, {width}]",
    )
    usage = ("model = timm.create_model('local-dir:.', pretrained=True).eval()", "print(model(images))")
    return base.Exported(out, signature, usage, notes=tuple(notes))
