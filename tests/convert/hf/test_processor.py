"""Preprocessing in all of its spellings, against transformers' own processors."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from vit_jax.convert.hf import processor
from vit_jax.convert.preprocess import Preprocess
from vit_jax.data.framing import Framing
from vit_jax.types import UserError

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOOGLE = {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 224}
META = {
    "image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
    "image_mean": IMAGENET[0], "image_std": IMAGENET[1], "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}  # fmt: skip


CENTER, SQUASH = (Framing(mode, rounding="transformers") for mode in ("center", "squash"))


def vit(size, crop=1.0, interpolation="bilinear", mean=HALF, std=HALF):
    return Preprocess(size, crop, interpolation, mean, std, frame=SQUASH)


def dino(size, crop=0.875, interpolation="bicubic", norm=IMAGENET, **frame):
    return Preprocess(size, crop, interpolation, *norm, frame=dataclasses.replace(CENTER, **frame))


CLIP = tuple(tuple(v) for v in processor.CLIP.values())


@pytest.mark.parametrize(
    ("content", "family", "size", "want", "notes"),
    [
        (GOOGLE, "vit", 224, vit(224), []),
        ({**GOOGLE, "size": {"height": 384, "width": 384}}, "vit", 384, vit(384), []),
        ({**GOOGLE, "size": 384}, "vit", 224, vit(224), ["--config.augment.size=384"]),
        ({**GOOGLE, "feature_extractor_type": "ViTFeatureExtractor"}, "dinov2", 224, vit(224), []),
        ({**GOOGLE, "rescale_factor": 0.00392157}, "vit", 224, vit(224), []),
        (META, "dinov2", 224, dino(224), []),
        (META, "dinov2", 518, dino(224), []),  # as transformers itself, which resizes the positions
        (META, "clip", 518, dino(518), ["--config.augment.size=224"]),
        ({**META, "image_processor_type": "BitImageProcessorFast"}, "dinov2", 224, dino(224), []),
        ({"image_processor_type": "DeiTImageProcessor"}, "vit", 224, vit(224, 0.875, "bicubic"), []),
        ({"size": 256, "crop_size": 224}, "dinov2", 224, dino(224, norm=CLIP), []),
        ({**META, "crop_size": 300}, "dinov2", 300, dino(300, 1.17), []),  # black beside it
        ({**META, "do_center_crop": False}, "dinov2", 256, dino(256, 1.0), ["as long as they are"]),
        ({**META, "do_resize": False}, "dinov2", 518, dino(518, 1.0), ["not resize"]),
        ({**META, "resample": 1}, "dinov2", 224, dino(224, interpolation="lanczos"), []),
        ({**META, "resample": 6}, "dinov2", 224, dino(224), ["resample=6"]),
        ({**META, "image_processor_type": "NewImageProcessor"}, "dinov2", 224, dino(224),
         ["NewImageProcessor is unknown"]),
        ({**GOOGLE, "rescale_factor": 1 / 127.5}, "vit", 224, vit(224, mean=(0.25,) * 3, std=(0.25,) * 3), []),
        ({**GOOGLE, "do_rescale": False}, "vit", 224, vit(224, mean=(0.5 / 255,) * 3, std=(0.5 / 255,) * 3), []),
        ({**GOOGLE, "do_normalize": False}, "vit", 224, vit(224, mean=(0.0,) * 3, std=(1.0,) * 3), []),
        ({**GOOGLE, "image_mean": 0.25, "resample": None}, "vit", 224, vit(224, mean=(0.25,) * 3), []),
        (None, "vit", 384, vit(384), ["no preprocessor_config.json"]),
        (None, "dinov2", 518, dino(518), ["no preprocessor_config.json"]),
    ],
)  # fmt: skip
def test_reading(content, family, size, want, notes):
    found, noted = processor.read(content, family, size)
    assert found == want
    assert len(noted) == len(notes) and all(part in note for part, note in zip(notes, noted, strict=True)), noted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": {"height": 224, "width": 192}}, "only square inputs"),
        ({"size": "224"}, "a size of '224', expected one side"),
        ({"size": {}}, "expected one side"),
        ({"size": 0}, "expected one side"),
        ({"do_center_crop": True}, "a size of None"),
        ({"image_mean": [0.5, 0.5]}, "image_mean="),
        ({"image_std": "grey"}, "image_std=grey"),
        ({"rescale_factor": 0}, "a factor that is not 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor=1/255"),
    ],
)
def test_nonsense_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        processor.read(content, "vit", 224)


@pytest.mark.parametrize(
    "preprocess", [dino(32, 0.8), dino(48, 1.0, "lanczos"), dino(28), dino(27, 0.9, rest=1), vit(32), vit(32, 0.5)]
)
@pytest.mark.parametrize("pair", [False, True])
def test_there_and_back(preprocess, pair):
    content, notes = processor.write(preprocess, pair=pair)
    assert notes == []
    size, patch = preprocess.size, 1 + preprocess.frame.rest
    assert processor.read(json.loads(json.dumps(content)), "vit", size, patch) == (preprocess, [])


def test_one_with_remainder_of_dinov2():
    found, notes = processor.read({**META, "crop_size": 225}, "dinov2", 518, 14)
    assert (found.size, found.frame.rest) == (224, 1) and not notes


@pytest.mark.parametrize(
    ("preprocess", "note"),
    [
        (dino(224, rounding="torchvision"), "half a pixel beside"),
        (dino(224, mode="pad"), "fitted by 'pad'"),
        (dino(224, interpolation="bilinear_plain"), "no filter 'bilinear_plain'"),
        (Preprocess(224, 0.875, canvas=300), "images become 300 pixels"),
    ],
)
def test_what_transformers_cannot_say(preprocess, note):
    assert any(note in said for said in processor.write(preprocess)[1])


def test_a_crop_between_pixels_is_rounded_down():
    content, notes = processor.write(dino(224, 0.9))
    assert content["size"] == {"shortest_edge": 248} and not notes


@pytest.mark.parametrize("kind", [kind for kind in processor.DEFAULTS if kind != "Siglip2"])  # which makes patches
@pytest.mark.parametrize("size", [None, 64, {"shortest_edge": 64}, {"height": 64, "width": 64}])
def test_defaults_are_transformers(transformers, kind, size):
    content = {} if size is None else {"size": size}
    theirs = getattr(transformers, f"{kind}ImageProcessor")(**content)
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    pixels = theirs(PIL.Image.fromarray(image), return_tensors="np")["pixel_values"]
    ours, _ = processor.read({**content, "image_processor_type": f"{kind}ImageProcessor"}, "vit", pixels.shape[-1])
    notes = processor.read({**content, "image_processor_type": f"{kind}ImageProcessor"}, "vit", 10)[1]
    assert f"makes images of {pixels.shape[-1]} px" in notes[0]
    assert (ours.frame.mode == "squash") == (theirs.size.shortest_edge is None)
    assert {2: "bilinear", 3: "bicubic"}[int(theirs.resample)] == ours.interpolation
    np.testing.assert_allclose([*theirs.image_mean, *theirs.image_std], [*ours.mean, *ours.std])
