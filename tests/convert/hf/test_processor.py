"""Preprocessing in all of its spellings, against transformers' own processors."""

import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from vit_jax.augment.geometry import center_box, resample
from vit_jax.augment.policy import Norm
from vit_jax.convert.hf import processor
from vit_jax.convert.pretrained import Preprocess
from vit_jax.types import UserError

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOOGLE = {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 224}
META = {
    "image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
    "image_mean": IMAGENET[0], "image_std": IMAGENET[1], "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "family", "size", "want", "notes"),
    [
        (GOOGLE, "vit", 224, Preprocess(224), ["squashes"]),
        ({**GOOGLE, "size": {"height": 384, "width": 384}}, "vit", 384, Preprocess(384), ["squashes"]),
        ({**GOOGLE, "feature_extractor_type": "ViTFeatureExtractor"}, "dinov2", 224, Preprocess(224), ["squashes"]),
        ({**GOOGLE, "rescale_factor": 0.00392157}, "vit", 224, Preprocess(224), ["squashes"]),
        (META, "dinov2", 224, Preprocess(224, 0.875, "bicubic", *IMAGENET), []),
        (META, "dinov2", 518, Preprocess(518, 0.875, "bicubic", *IMAGENET), ["--config.augment.size=224"]),
        ({**META, "image_processor_type": "BitImageProcessorFast"}, "dinov2", 224,
         Preprocess(224, 0.875, "bicubic", *IMAGENET), []),
        ({"image_processor_type": "DeiTImageProcessor"}, "vit", 224, Preprocess(224, 0.875, "bicubic"), ["squashes"]),
        ({"size": 256, "crop_size": 224}, "dinov2", 224,
         Preprocess(224, 0.875, "bicubic", *(tuple(v) for v in processor.CLIP.values())), []),
        ({**META, "crop_size": 300}, "dinov2", 300, Preprocess(300, 1.0, "bicubic", *IMAGENET), []),
        ({**META, "do_center_crop": False}, "dinov2", 256, Preprocess(256, 1.0, "bicubic", *IMAGENET), []),
        ({**META, "do_resize": False}, "dinov2", 518, Preprocess(518, 0.875, "bicubic", *IMAGENET), ["not resize"]),
        ({**META, "resample": 1}, "dinov2", 224, Preprocess(224, 0.875, "bicubic", *IMAGENET), ["resample=1"]),
        ({**META, "image_processor_type": "NewImageProcessor"}, "dinov2", 224,
         Preprocess(224, 0.875, "bicubic", *IMAGENET), ["NewImageProcessor is unknown"]),
        ({**GOOGLE, "rescale_factor": 1 / 127.5}, "vit", 224,
         Preprocess(224, 1.0, "bilinear", (0.25,) * 3, (0.25,) * 3), ["squashes"]),
        ({**GOOGLE, "do_rescale": False}, "vit", 224,
         Preprocess(224, 1.0, "bilinear", (0.5 / 255,) * 3, (0.5 / 255,) * 3), ["squashes"]),
        ({**GOOGLE, "do_normalize": False}, "vit", 224, Preprocess(224, 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3),
         ["squashes"]),
        ({**GOOGLE, "image_mean": 0.25, "resample": None}, "vit", 224,
         Preprocess(224, 1.0, "bilinear", (0.25,) * 3, HALF), ["squashes"]),
        (None, "vit", 384, Preprocess(384), ["no preprocessor_config.json"]),
        (None, "dinov2", 518, Preprocess(518, 0.875, "bicubic", *IMAGENET), ["no preprocessor_config.json"]),
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
    "preprocess", [Preprocess(32, 0.8, "bicubic", *IMAGENET), Preprocess(48), Preprocess(28, 0.875)]
)
def test_there_and_back(preprocess):
    content, notes = processor.write(preprocess)
    assert notes == []
    assert processor.read(json.loads(json.dumps(content)), "vit", preprocess.size) == (preprocess, [])


def test_a_crop_between_pixels_is_noted():
    content, notes = processor.write(Preprocess(224, 0.9))
    assert content["size"] == {"shortest_edge": 249}
    assert notes == ["transformers keeps 224 of 249 px, for a crop of 0.9"]


def test_what_is_written_prepares_images_as_we_do(transformers, tmp_path):
    """Both cut the centre square and resize; transformers rounds to 8 bits in between."""
    preprocess = Preprocess(32, 0.8, "bicubic", *IMAGENET)
    for name, content in {
        "preprocessor_config.json": processor.write(preprocess)[0],
        "config.json": {"model_type": "vit"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    y, x = np.mgrid[:80, :120] / 80
    image = np.stack([np.sin(5 * x + y), np.cos(4 * y), x * y], axis=-1)
    image = np.uint8(255 * (image - image.min()) / np.ptp(image))
    theirs = theirs(PIL.Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    square = jnp.asarray(image[:, 20:100])
    cut = resample(square, center_box(80, preprocess.crop), preprocess.size, preprocess.interpolation)
    ours = np.asarray(Norm(preprocess.mean, preprocess.std)(cut))
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, atol=2 / 255 / 0.22)


@pytest.mark.parametrize("kind", processor.DEFAULTS)
@pytest.mark.parametrize("size", [None, 64, {"shortest_edge": 64}, {"height": 64, "width": 64}])
def test_defaults_are_transformers(transformers, kind, size):
    content = {} if size is None else {"size": size}
    theirs = getattr(transformers, f"{kind}ImageProcessor")(**content)
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    pixels = theirs(PIL.Image.fromarray(image), return_tensors="np")["pixel_values"]
    ours, _ = processor.read({**content, "image_processor_type": f"{kind}ImageProcessor"}, "vit", pixels.shape[-1])
    notes = processor.read({**content, "image_processor_type": f"{kind}ImageProcessor"}, "vit", 10)[1]
    assert f"makes images of {pixels.shape[-1]} px" in notes[0]
    assert any("squashes" in note for note in notes) == (theirs.size.shortest_edge is None)
    assert {2: "bilinear", 3: "bicubic"}[int(theirs.resample)] == ours.interpolation
    np.testing.assert_allclose([*theirs.image_mean, *theirs.image_std], [*ours.mean, *ours.std])
