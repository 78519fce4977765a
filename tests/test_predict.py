"""Prediction from a checkpoint: against the model by hand, without the data, past files that cannot be read."""

import dataclasses
import io
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import models
from vit_jax.checkpoint import Checkpoints
from vit_jax.convert import read, run_folder, write
from vit_jax.data.text import TextCodec, to_meta
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.decoding import Beam, Greedy, Nucleus
from vit_jax.predict import ImageText, Predictor, expand, load, of
from vit_jax.types import UserError

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
FIELDS = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
MODEL = models.create("vit", **FIELDS, num_classes=7)


def raw(output_activation):
    return {
        "model": {"name": "vit", **FIELDS},
        "data": {"path": "folder:/gone", "canvas": 8},  # it is nowhere, and nobody misses it
        "augment": {"size": 8, "norm": "imagenet"},
        "objective": {"name": "classify", "output_activation": output_activation},
    }


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.5), s.dtype), shapes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, params):
    """OutputActivation -> a workdir with one checkpoint of random parameters."""
    root = tmp_path_factory.mktemp("predict")
    for output_activation in ("softmax", "sigmoid"):
        checkpoints = Checkpoints(root / output_activation)
        checkpoints.save(1, {"params": params}, {"config": raw(output_activation), "class_names": list(NAMES)}, {})
        checkpoints.close()
    return root


@pytest.fixture(scope="module")
def classifier(folders):
    """Of a softmax over the classes, loaded once."""
    return Predictor.load(folders / "softmax")


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


APPLY = jax.jit(MODEL.apply)


def by_hand(params, path, output_activation):
    """float64 normalisation and probabilities of the model's logits."""
    pixels = np.asarray(Image.open(path), np.float64) / 255
    x = (pixels - (0.485, 0.456, 0.406)) / np.array((0.229, 0.224, 0.225))
    logits = np.asarray(APPLY({"params": params}, jnp.asarray(x[None], jnp.float32))[0], np.float64)
    return 1 / (1 + np.exp(-logits)) if output_activation == "sigmoid" else np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_top_k_is_the_model_by_hand(folders, images, params, output_activation):
    predictor = Predictor.load(folders / output_activation)
    files = expand([str(images)])
    rows = list(predictor(files, top=3, batch_size=2))
    assert [r["path"] for r in rows] == files and len(rows) == 5
    for row in rows:
        p = by_hand(params, row["path"], output_activation)
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


def test_weights_of_others(folders, classifier, images, tmp_path):
    """The same model in another project's format gives the same answers, class names and preprocessing included."""
    with read.load(folders / "softmax") as ours:
        write.save(ours, tmp_path / "theirs", "hf")
    ours, theirs = classifier, Predictor.load(tmp_path / "theirs")
    assert (
        theirs.class_names == NAMES
        and theirs.pretrained.preprocess.augment()["norm"] == ours.pretrained.preprocess.augment()["norm"]
    )
    canvas = ours.image(images / "a.png")[None]
    np.testing.assert_array_equal(theirs.image(images / "a.png")[None], canvas)
    np.testing.assert_allclose(theirs.probabilities(canvas), ours.probabilities(canvas), atol=1e-6)


def test_unreadable_files_are_rows_and_the_others_go_on(classifier, images, tmp_path):
    (tmp_path / "torn.png").write_bytes((images / "a.png").read_bytes()[:70])
    files = [
        str(tmp_path / "torn.png"),
        str(images / "a.png"),
        str(images / "notes.txt"),
        str(images / "empty"),
        "/no/x.png",
    ]
    torn, good, text, folder, missing = classifier(list(map(str, files)), batch_size=4)
    assert "torn.png is unreadable or truncated" in torn["error"]
    assert "notes.txt" in text["error"] and "cannot be read (Is a directory)" in folder["error"]
    assert missing == {"path": "/no/x.png", "error": "the image /no/x.png cannot be read (No such file or directory)"}
    assert len(good["predictions"]) == 5


def test_bytes_and_arrays_are_images_too(classifier):
    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(classifier.image(file.getvalue()), pixels)
    np.testing.assert_array_equal(classifier.image(pixels), pixels)
    with pytest.raises(UserError, match="unreadable"):
        classifier.image(b"nothing")


def test_folders_become_their_images(images):
    found = expand([str(images / "notes.txt"), str(images), str(images / "a.png")])
    expected = [images / n for n in ("notes.txt", "a.png", "b.PNG", "deep/c.png", "deep/er/d.bmp", "z.webp", "a.png")]
    assert [pathlib.Path(f) for f in found] == expected
    with pytest.raises(UserError, match=r"the folder '.*empty' holds no image \(.jpg, .*, .heif\)"):
        expand([str(images / "empty")])
    with pytest.raises(UserError, match=r"no such file or folder: '/no/x\.png'"):
        expand(["/no/x.png"])


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Predictor.load(tmp_path)


# --- images and texts ---

LENGTH = 12
CODEC = TextCodec(open_tokenizer("bytes"), LENGTH)
TEXTS = ["a cat", "two dogs", "", "a very long sentence that is cut", "tree"]
TOWERS = {
    "image_tower": {"name": "vit", **FIELDS, "num_classes": 0},
    "text_tower": {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "pool": "cls"},
    "embed_dim": 16,
}
TRAINED = {
    "coca": ({"name": "coca", **TOWERS, "decoder": {"depth": 1, "heads": 2, "mlp_dim": 32}, "queries": 3,
              "pool_heads": 2}, {"name": "coca"}),
    "siglip": ({"name": "two_tower", **TOWERS, "temperature": 5.0, "bias": -0.5},
               {"name": "contrast", "loss": "sigmoid"}),
}  # fmt: skip
FITTED = {"vocab_size": 259, "length": LENGTH, "end_id": 2, "pad_id": 0}


def create(kind):
    fields = dict(TRAINED[kind][0])
    fields["text_tower"] = fields["text_tower"] | FITTED
    return models.create(fields.pop("name"), **fields)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Kind -> (workdir, parameters) of an image-text model; its own data and tokenizer files are nowhere."""
    root, out = tmp_path_factory.mktemp("pairs"), {}
    for kind, (fields, objective) in TRAINED.items():
        rng, model = np.random.default_rng(3), create(kind)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *model.inputs(8))

        def one(path, s, rng=rng):
            name = jax.tree_util.keystr(path)
            if name.startswith("['logit"):
                return jnp.float32(1.2 if "scale" in name else -0.7)
            return jnp.asarray(("scale" in name) + rng.normal(size=s.shape, scale=0.3), s.dtype)

        params = jax.tree_util.tree_map_with_path(one, nn.unbox(shapes["params"]))
        text = {"tokenizer": "json:/gone/tokenizer.json", "templates": "/gone/templates.txt", "length": LENGTH}
        config = raw("softmax") | {"model": fields, "objective": objective}
        config["data"] = {**config["data"], "text": text}
        checkpoints = Checkpoints(root / kind)
        checkpoints.save(1, {"params": params}, {"config": config, "class_names": [], "tokenizer": to_meta(CODEC)}, {})
        checkpoints.close()
        out[kind] = root / kind, params
    return out


def embeddings(kind, params, files):
    """Of the images and of TEXTS by hand."""
    pixels = np.stack([np.asarray(Image.open(f), np.float64) / 255 for f in files])
    x = jnp.asarray((pixels - (0.485, 0.456, 0.406)) / np.array((0.229, 0.224, 0.225)), jnp.float32)
    out = jax.jit(create(kind).apply)({"params": params}, x, jnp.asarray(CODEC(TEXTS)))
    return np.asarray(out.image, np.float64), np.asarray(out.text, np.float64), float(out.scale), float(out.bias)


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["coca", "siglip"])
def test_texts_are_ranked_as_by_hand(pairs, images, kind, caplog):
    workdir, params = pairs[kind]
    files, model = expand([str(images)]), load(workdir)
    assert isinstance(model, ImageText) and model.codec == CODEC
    image, text, scale, bias = embeddings(kind, params, files)
    logits = scale * image @ text.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if kind == "coca" else 1 / (1 + np.exp(-logits))
    rows = list(model.rank([*files, "/no/x.png"], TEXTS, top=3))
    assert "cannot be read" in rows.pop()["error"]
    for row, file, expected in zip(rows, files, p, strict=True):
        best = np.argsort(-expected)[:3]
        assert row["path"] == file and [r["text"] for r in row["predictions"]] == [TEXTS[i] for i in best]
        np.testing.assert_allclose([r["probability"] for r in row["predictions"]], expected[best], rtol=1e-4)
    assert np.ptp(p) > 0.05 and (bias != 0) == (kind == "siglip")
    said = [r.getMessage() for r in caplog.records]
    assert "1 files in" in said[0] and said[1:] == ["1 of 5 texts are longer than 12 tokens and were cut."]
    canvases = np.stack([model.image(f) for f in files])
    np.testing.assert_allclose(model.embed(canvases), image, atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(TEXTS), text, atol=1e-5)
    assert model.embed_texts([]).shape == (0, 16)


def test_more_texts_than_a_batch(pairs):
    model = load(pairs["siglip"][0])
    texts = [f"text {i}" for i in range(37)]
    many = model.embed_texts(texts)
    np.testing.assert_allclose(many[[0, 35, 36]], model.embed_texts([texts[i] for i in (0, 35, 36)]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, rtol=1e-5)


def test_captions_of_files(pairs, images, tmp_path):
    workdir, params = pairs["coca"]
    (tmp_path / "torn.png").write_bytes(b"no image")
    files = [str(tmp_path / "torn.png"), *expand([str(images)])]
    model = load(workdir)
    torn, *rows = model.captions(files, Greedy())
    assert "torn.png is unreadable" in torn["error"] and "caption" not in torn
    coca = create("coca")
    canvases = jnp.asarray(np.stack([model.image(f) for f in files[1:]]))
    encode = jax.jit(lambda x: coca.apply({"params": params}, model.prepared(x), method="encode")[1])
    memory = encode(canvases)
    text = np.zeros((5, LENGTH), np.int32)
    text[:, 0], total = 1, np.zeros(5)
    logits = jax.jit(lambda text: coca.apply({"params": params}, text, memory, method="caption_logits"))
    for at in range(1, LENGTH):
        z = np.array(logits(text)[:, at - 1], np.float64)
        z[:, [0, 1]] = -np.inf
        z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
        going = ~(text[:, :at] == 2).any(1)
        text[:, at] = np.where(going, z.argmax(1), 0)
        total += np.where(going, z.max(1), 0)
    assert [row["caption"] for row in rows] == [CODEC.decode(t) for t in text]
    np.testing.assert_allclose([row["log_p"] for row in rows], total, rtol=1e-4)


@pytest.mark.thorough
def test_a_drawn_caption_does_not_depend_on_the_batch(pairs, images):
    files, model = expand([str(images)]), load(pairs["coca"][0])
    whole = list(model.captions(files, Nucleus(1.0, seed=4)))
    pairs_of = model.captions(files, Nucleus(1.0, seed=4), batch_size=2)
    assert [r["caption"] for r in pairs_of] == [r["caption"] for r in whole]
    assert len({r["caption"] for r in whole}) > 1


def test_the_wrong_question_is_one_sentence(pairs, folders, classifier, images, tmp_path):
    clip, file = load(pairs["siglip"][0]), str(images / "a.png")
    assert isinstance(classifier, Predictor)
    for ask, text in (
        (lambda: classifier.captions([file], Greedy()), "a classifier writes no captions; leave out --captions, or"),
        (lambda: classifier.rank([file], ["a cat"]), "a classifier knows its own classes only; leave out --text, or"),
        (lambda: clip([file]), "an image-text model has no classes of its own; name them: --text 'a cat' 'a dog'"),
        (lambda: list(clip.captions([file], Beam(2))), "a TwoTower has no caption decoder; captions need a CoCa"),
        (lambda: Predictor.load(pairs["siglip"][0]), "siglip is an image-text model, but a classifier is needed"),
        (lambda: ImageText.load(folders / "softmax"), "softmax is a classifier, but an image-text model is needed"),
    ):
        with pytest.raises(UserError, match=text):
            ask()
    mute = ImageText(dataclasses.replace(clip.pretrained, encoder=None))
    with pytest.raises(UserError, match="these weights came without a tokenizer"):
        mute.rank([file], ["a cat"])


def test_features_of_a_classifier(classifier, images, params):
    model = classifier
    canvas = model.image(images / "a.png")[None]
    pooled = model.embed(canvas)
    logits = pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(p, model.probabilities(canvas), rtol=1e-4)


def test_a_head_that_is_left_out_leaves_features(classifier, folders, images):
    """Of any number of scales, where a head that was trained on one cannot stay."""
    load_with = lambda **changes: of(run_folder.load(folders / "softmax", changes).read())  # noqa: E731
    canvas, changes = classifier.image(images / "a.png")[None], {"model.num_classes": 0}
    bare = load_with(**changes)
    assert bare.class_names == () and "head" not in bare.params
    np.testing.assert_allclose(bare.embed(canvas), classifier.embed(canvas), rtol=1e-5)
    two = load_with(**changes, **{"model.scales": (1, 2)})
    np.testing.assert_allclose(two.embed(canvas)[:, :16], classifier.embed(canvas), rtol=1e-5)
    assert two.embed(canvas).shape == (1, 32)
    with pytest.raises(UserError, match="has no head, so it names no classes; 'embed' writes"):
        bare([str(images / "a.png")])
    says = r"not trained with model.scales=\(1, 2\); leave that out, or its head, --config.model.num_classes=0: feat"
    with pytest.raises(UserError, match=says):
        load_with(**{"model.scales": (1, 2)})
    with pytest.raises(UserError, match=r"not trained with model.width=32, model.heads=4; leave that out\."):
        load_with(**{"model.width": 32, "model.heads": 4})
