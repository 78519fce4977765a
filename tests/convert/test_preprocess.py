"""Pixels: what a file becomes here and in the projects that weights come from, for every preset that they publish."""

import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.augment import Augment
from vit_jax.config import parse
from vit_jax.convert.hf import processor
from vit_jax.convert.open_clip import config as open_clip_config
from vit_jax.convert.preprocess import Preprocess, fraction, said
from vit_jax.convert.timm import config as timm_config
from vit_jax.data.framing import Framing
from vit_jax.data.loader import DataConfig

SHAPES = {
    "square": (400, 400),
    "wide": (640, 427),
    "tall": (205, 427),
    "tiny": (37, 23),
    "odd": (333, 251),
    "strip": (19, 160),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Photographs of every shape, as files."""
    china, flower = load_sample_images().images
    folder = tmp_path_factory.mktemp("photographs")
    for i, (name, (width, height)) in enumerate(SHAPES.items()):
        picture = (china, flower)[i % 2][:height, 640 - width :]
        Image.fromarray(picture).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def grey_levels(preprocess, files, process):
    """Largest difference to what another project's ``process`` makes of the same files, for every shape."""
    ours = np.asarray(preprocess(files))
    gaps = {}
    for file, image in zip(files, ours, strict=True):
        theirs = np.asarray(process(Image.open(file).convert("RGB")), np.float32).transpose(1, 2, 0)
        assert theirs.shape[0] == theirs.shape[1] == preprocess.size + preprocess.frame.rest
        theirs = theirs[: preprocess.size, : preprocess.size]
        gaps[file.stem] = float(255 * np.abs((theirs - image) * np.float32(preprocess.std)).max())
    return gaps


def whole(side, patch):
    """What of an image the patches cover."""
    return side // patch * patch


@pytest.mark.parametrize("norm", ["inception", "imagenet", "clip", "norm(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))"])
def test_preprocessing_survives_as_a_configuration(norm):
    augment = parse(Augment, {"size": 48, "crop": 0.875, "interpolation": "bicubic", "norm": norm})
    found = Preprocess.of(augment, 60)
    section = found.augment()
    assert parse(Augment, section) == augment and found.data()["canvas"] == 60
    assert (section["norm"] == norm) == (not norm.startswith("norm("))


ONE = Preprocess(12, 0.75, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), frame=Framing("squash", rounding="torchvision"))
CASES = {
    "one step": ONE,
    "another filter": dataclasses.replace(ONE, interpolation="lanczos", crop=1.0),
    "with a remainder": dataclasses.replace(ONE, frame=Framing("center", rounding="transformers", rest=3)),
    "a run": Preprocess(12, 0.75, "bilinear", canvas=16, frame=Framing()),
    "a run that resamples": Preprocess(12, 0.875, "bilinear", canvas=18, frame=Framing("squash")),
}


@pytest.mark.parametrize("preprocess", CASES.values(), ids=list(CASES))
def test_there_and_back_through_a_configuration(preprocess, files):
    """The sections of a run's configuration, as JSON, make the same pixels of the same file."""
    augment, data = json.loads(json.dumps([preprocess.augment(), preprocess.data()]))
    data = parse(DataConfig, {"path": "x", **data})
    again = Preprocess.of(parse(Augment, augment), data.canvas, data.frame)
    assert again == preprocess
    assert np.array_equal(again.read(files[0]), preprocess.read(files[0]))


def test_one_step_does_all_on_the_host(files):
    """What is left for the device is the norm: no pixel is resampled twice."""
    pixels = ONE.read(files[0])
    want = (pixels / 255 - np.array(ONE.mean)) / np.array(ONE.std)
    np.testing.assert_allclose(ONE(files[0]), want, atol=1e-5)
    with Image.open(files[0]) as image:
        whole = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels, whole[2:14, 2:14])


def test_a_run_in_one_step():
    """A run that cuts what the host has resized is as good as one step, with the host's filter: it was bicubic."""
    run = Preprocess(224, 0.875, "bilinear", canvas=256, frame=Framing())
    assert not run.resampled and run.single == Preprocess(224, 0.875, "bicubic", frame=Framing())
    for twice in (dataclasses.replace(run, canvas=300), dataclasses.replace(run, canvas=255, crop=224 / 255)):
        assert twice.resampled and twice.single.canvas is None


EDGES = [(224, 256), (224, 248), (224, 235), (384, 426), (8, 10), (518, 592), (7, 7), (300, 256)]


@pytest.mark.parametrize(("side", "edge"), EDGES)
def test_a_fraction_gives_the_edge_again(side, edge):
    found = fraction(side, edge)
    assert math.floor(side / found) == edge and len(f"{found:.10g}") <= 8


def test_every_edge_has_a_fraction():
    for side in (1, 7, 97, 224, 384):
        assert all(math.floor(side / fraction(side, edge)) == edge for edge in range(side, 3 * side + 1))


def test_what_others_can_say():
    everything = {"modes": ("center", "squash", "pad"), "filters": ("bicubic", "lanczos")}
    assert said(ONE, "X", "torchvision", **everything) == (ONE, [])
    found, notes = said(ONE, "X", "transformers", **everything)
    assert found.frame.rounding == "transformers" and notes == []  # a squashed image has no sides to round
    _, (note,) = said(dataclasses.replace(ONE, frame=Framing()), "X", "transformers", **everything)
    assert "half a pixel" in note
    _, (note,) = said(dataclasses.replace(ONE, interpolation="box"), "X", "torchvision", **everything)
    assert "no filter 'box'" in note
    _, (note,) = said(ONE, "X", "torchvision", modes=("center",), filters=("bicubic",))
    assert "fitted by 'squash'" in note
    found, (note, _) = said(CASES["a run that resamples"], "X", "torchvision", modes=("squash",), filters=("bicubic",))
    assert "images become 18 pixels before 0.875" in note and found.canvas is None


def test_every_preset_of_timm(timm, files):
    """Of the architectures that are read: ViT, hybrids and Mixers."""
    from timm.data import create_transform, resolve_data_config

    presets = {}
    for name in timm.list_models(pretrained=True):
        if timm.models._registry._model_to_module[name.partition(".")[0]] not in MODULES:
            continue
        told = timm.models.get_pretrained_cfg(name).to_dict()
        patch = int((re.search(r"patch(\d+)", name) or [0, 1])[1])
        key = (told["input_size"][1], patch * (told["input_size"][1] % patch > 0), *(told[k] for k in KEYS))
        presets.setdefault(key, (name, patch, told))
    assert len(presets) >= 25
    for name, patch, told in presets.values():
        config = timm_config.read_config({"config.json": {"architecture": name, "pretrained_cfg": told}})
        preprocess, notes = timm_config.preprocess(config, whole(told["input_size"][1], patch), 0.5, patch)
        process = create_transform(**resolve_data_config(pretrained_cfg=told), is_training=False)
        gaps = grey_levels(preprocess, files, process)
        assert not notes and max(gaps.values()) <= 0.01, (name, gaps)


MODULES = ("vision_transformer", "vision_transformer_hybrid", "mlp_mixer")
KEYS = ("crop_pct", "crop_mode", "interpolation")


def test_every_preset_of_open_clip(open_clip, files):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    presets = {}
    for model, tag in open_clip.list_pretrained():
        vision, told = open_clip.get_model_config(model)["vision_cfg"], open_clip.get_pretrained_cfg(model, tag)
        side, trunk = vision.get("image_size", 224), vision.get("timm_model_name", "")
        patch = vision.get("patch_size") or int((re.search(r"patch(\d+)", trunk) or [0, 1])[1])
        images = {key: told.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
        presets.setdefault(
            (side, side % patch, images["interpolation"], images["resize_mode"]), (model, patch, side, images)
        )
    assert len(presets) >= 20
    for name, patch, side, images in presets.values():
        content = {"model_cfg": {"vision_cfg": {"image_size": side}}, "preprocess_cfg": images}
        config = open_clip_config.Config.of({open_clip_config.FILE: content})
        preprocess, notes = open_clip_config.preprocess(config, whole(side, patch), patch)
        process = image_transform_v2(PreprocessCfg(size=side, **{k: v for k, v in images.items() if v}), is_train=False)
        gaps = grey_levels(preprocess, files, process)
        assert not notes and max(gaps.values()) <= 0.01, (name, gaps)


def square(side):
    return {"height": side, "width": side}


CLIP = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "resample": 3}
BIT = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "resample": 3}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "resample": 3}
DEIT = {"feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": True, "resample": 3}
PUBLISHED = {
    "google/vit-base-patch16-224": ("vit", 16, {"size": 224, "resample": 2}),
    "google/vit-base-patch16-384": ("vit", 16, {"size": square(384), "image_processor_type": "ViTImageProcessor"}),
    "facebook/deit-base-patch16-224": ("vit", 16, {**DEIT, "size": 256, "crop_size": 224}),
    "facebook/dinov2-small": ("dinov2", 14, {**BIT, "size": {"shortest_edge": 256}, "crop_size": square(224)}),
    "openai/clip-vit-base-patch32": ("clip", 32, {**CLIP, "size": 224, "crop_size": 224}),
    "openai/clip-vit-large-patch14-336": ("clip", 14, {**CLIP, "size": {"shortest_edge": 336}, "crop_size": 336}),
    "google/siglip-base-patch16-256": ("siglip", 16, {**SIGLIP, "size": square(256)}),
    "google/siglip-so400m-patch14-384": ("siglip", 14, {**SIGLIP, "size": square(384)}),
    "google/siglip2-base-patch16-512": ("siglip", 16, {**SIGLIP, "size": square(512), "resample": 2}),
    "an odd cut": ("clip", 14, {**CLIP, "size": 251, "crop_size": 224}),
    "lanczos": ("clip", 32, {**CLIP, "size": 224, "crop_size": 224, "resample": 1}),
    "a cut larger than the image": ("dinov2", 14, {**BIT, "size": 200, "crop_size": 224}),
    "defaults of ViT": ("vit", 16, {"image_processor_type": "ViTImageProcessor"}),
    "defaults of DeiT": ("vit", 16, {"image_processor_type": "DeiTImageProcessor"}),
    "defaults of Bit": ("dinov2", 14, {"image_processor_type": "BitImageProcessor"}),
    "defaults of CLIP": ("clip", 16, {"image_processor_type": "CLIPImageProcessor"}),
    "defaults of Siglip": ("siglip", 16, {"image_processor_type": "SiglipImageProcessor"}),
}
"""What transformers' models are published with: family, patch and content of their processor's file."""


def pixel_values(process, image):
    return process(image, return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_every_processor_of_transformers(backend, transformers, files):
    """With torchvision, its default, and with Pillow, whose arithmetic is another one."""
    for name, (family, patch, content) in PUBLISHED.items():
        made = processor.read(content, "dinov2", 0, 1)[0].size
        preprocess, _ = processor.read(content, family, whole(made, patch), patch)
        kind = processor.PUBLISHED[family][0]
        kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or kind)
        kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("ImageProcessor")
        process = getattr(transformers, f"{kind}ImageProcessor{backend}").from_dict(content)
        alike = [f for f in files if not backend or f.stem == "square"]
        gaps = grey_levels(preprocess, alike, functools.partial(pixel_values, process))
        assert max(gaps.values()) <= 1.01, (name, gaps)
