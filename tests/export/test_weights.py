"""Weights in timm's layout, loaded by timm, against the checkpoint."""

import os

import numpy as np
import pytest
from PIL import Image

from vit_jax.export import weights
from vit_jax.types import UserError


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_timm_computes_the_same_probabilities(timm, torch, predictor, tmp_path, output_activation):
    """Photographs of 8 x 8 pixels, normalised in float64: nothing here is our preprocessing."""
    ours = predictor(
        model={"pool": "gap"},
        data={"canvas": 8},
        augment={"crop": 1.0, "norm": "imagenet"},
        objective={"name": "classify", "output_activation": output_activation},
    )
    written = weights.write(ours, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert written.signature[1] == f"logits ({output_activation}) float32[batch, 7]" and written.difference is None
    assert written.usage[0] == "model = timm.create_model('local-dir:.', pretrained=True).eval()"
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images = np.stack([ours.image(_png(image, tmp_path)) for image in pixels])
    np.testing.assert_array_equal(images, pixels)
    normalised = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.no_grad():
        logits = model(torch.from_numpy(normalised.astype(np.float32).transpose(0, 3, 1, 2)))
    theirs = (logits.softmax(-1) if output_activation == "softmax" else logits.sigmoid()).numpy()
    np.testing.assert_allclose(theirs, ours.probabilities(images), rtol=0, atol=1e-5)
    assert theirs.max() > 0.3
    *notes, rounding = written.notes
    assert "half a pixel beside" in rounding  # a run rounds otherwise
    assert notes == ([] if output_activation == "softmax" else ["timm cannot say that the outputs are sigmoids"])


def test_a_model_that_timm_has_not(predictor, tmp_path):
    with pytest.raises(UserError, match="timm has no layer before the head"):
        weights.write(predictor(model={"pre_logits": 8}), tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there' exists already"):
        weights.write(predictor(), tmp_path / "there")
    assert os.listdir(tmp_path) == ["there"]


def test_towers_are_refused(image_text, tmp_path):
    with pytest.raises(UserError, match=r"is an image-text model, and timm has classifiers alone: .*--to open_clip"):
        weights.write(image_text(), tmp_path / "out")


def _png(image, folder):
    Image.fromarray(image).save(folder / "image.png")
    return folder / "image.png"
