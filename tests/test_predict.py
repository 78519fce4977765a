"""Prediction from a checkpoint: against the model by hand, without the data, past files that cannot be read."""

import io
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import convert, models
from vit_jax.checkpoint import Checkpoints
from vit_jax.predict import Predictor, expand
from vit_jax.types import UserError

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
FIELDS = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
MODEL = models.create("vit", **FIELDS, num_classes=7)


def raw(link):
    return {
        "model": {"name": "vit", **FIELDS},
        "data": {"path": "folder:/gone", "canvas": 8},  # it is nowhere, and nobody misses it
        "augment": {"size": 8, "norm": "imagenet"},
        "objective": {"name": "classify", "link": link},
    }


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.5), s.dtype), shapes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, params):
    """Link -> a workdir with one checkpoint of random parameters."""
    root = tmp_path_factory.mktemp("predict")
    for link in ("softmax", "sigmoid"):
        checkpoints = Checkpoints(root / link)
        checkpoints.save(1, {"params": params}, {"config": raw(link), "class_names": list(NAMES)}, {})
        checkpoints.close()
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five PNGs of 8 x 8, some in sub-folders, and things that are no images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for name in ("a.png", "b.PNG", "deep/c.png", "deep/er/d.bmp", "z.webp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        image.save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    (root / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    return root


def by_hand(params, path, link):
    """float64 normalisation and probabilities of the model's logits."""
    pixels = np.asarray(Image.open(path), np.float64) / 255
    x = (pixels - (0.485, 0.456, 0.406)) / np.array((0.229, 0.224, 0.225))
    logits = np.asarray(MODEL.apply({"params": params}, jnp.asarray(x[None], jnp.float32))[0], np.float64)
    return 1 / (1 + np.exp(-logits)) if link == "sigmoid" else np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_top_k_is_the_model_by_hand(folders, images, params, link):
    predictor = Predictor.load(folders / link)
    files = expand([str(images)])
    rows = list(predictor(files, top=3, batch_size=2))
    assert [r["path"] for r in rows] == files and len(rows) == 5
    for row in rows:
        p = by_hand(params, row["path"], link)
        best = np.argsort(-p)[:3]
        assert [x["class"] for x in row["predictions"]] == [NAMES[i] for i in best]
        np.testing.assert_allclose([x["probability"] for x in row["predictions"]], p[best], rtol=1e-4, atol=1e-6)


def test_the_batch_size_does_not_matter(folders, images):
    predictor = Predictor.load(folders / "softmax" / "checkpoints" / "1")
    files = expand([str(images)])
    a, b = (
        np.array([[x["probability"] for x in r["predictions"]] for r in predictor(files, batch_size=n)])
        for n in (32, 3)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert a.shape == (5, 5)
    assert len(next(iter(predictor(files[:1], top=99)))["predictions"]) == 7


def test_weights_of_others(folders, images, tmp_path):
    """The same model in another project's format gives the same answers, class names and preprocessing included."""
    with convert.load(folders / "softmax") as ours:
        convert.save(ours, tmp_path / "theirs", "hf")
    ours, theirs = (Predictor.load(path) for path in (folders / "softmax", tmp_path / "theirs"))
    assert theirs.class_names == NAMES and theirs.config.augment.norm == ours.config.augment.norm
    canvas = ours.image(images / "a.png")[None]
    np.testing.assert_array_equal(theirs.image(images / "a.png")[None], canvas)
    np.testing.assert_allclose(theirs.probabilities(canvas), ours.probabilities(canvas), atol=1e-6)


def test_unreadable_files_are_rows_and_the_others_go_on(folders, images, tmp_path):
    (tmp_path / "torn.png").write_bytes((images / "a.png").read_bytes()[:70])
    files = [
        str(tmp_path / "torn.png"),
        str(images / "a.png"),
        str(images / "notes.txt"),
        str(images / "empty"),
        "/no/x.png",
    ]
    torn, good, text, folder, missing = Predictor.load(folders / "softmax")(list(map(str, files)), batch_size=4)
    assert "torn.png is unreadable or truncated" in torn["error"]
    assert "notes.txt" in text["error"] and "cannot be read (Is a directory)" in folder["error"]
    assert missing == {"path": "/no/x.png", "error": "/no/x.png cannot be read (No such file or directory)."}
    assert len(good["predictions"]) == 5


def test_bytes_and_arrays_are_images_too(folders):
    predictor = Predictor.load(folders / "softmax")
    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(predictor.image(file.getvalue()), pixels)
    np.testing.assert_array_equal(predictor.image(pixels), pixels)
    with pytest.raises(UserError, match="unreadable"):
        predictor.image(b"nothing")


def test_folders_become_their_images(images):
    found = expand([str(images / "notes.txt"), str(images), str(images / "a.png")])
    expected = [images / n for n in ("notes.txt", "a.png", "b.PNG", "deep/c.png", "deep/er/d.bmp", "z.webp", "a.png")]
    assert [pathlib.Path(f) for f in found] == expected
    with pytest.raises(UserError, match=r"the folder '.*empty' holds no image \(.bmp, .jpeg, .jpg, .png, .webp\)"):
        expand([str(images / "empty")])
    with pytest.raises(UserError, match=r"no such file or folder: '/no/x\.png'"):
        expand(["/no/x.png"])


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Predictor.load(tmp_path)
