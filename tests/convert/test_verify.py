"""The proof itself: it passes on right weights, fails on wrong ones, and shows the peers what the model sees."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from vit_jax import models
from vit_jax.convert import verify, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data import framing
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe

MODEL = models.create("vit", width=64, depth=2, heads=4, mlp_dim=96, patch=8, num_classes=5, activation="gelu_tanh")
PREPROCESS = Preprocess(24, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def pretrained(rng):
    params = {
        p: Tensor.of(rng.normal(size=s, scale=0.1).astype(np.float32)) for p, s in describe.shapes(MODEL, 24).items()
    }
    return Stored(MODEL, params, PREPROCESS, tuple("abcde"))


PEERS = {"timm": "timm", "hf": "transformers", "npz": "timm"}


@pytest.mark.parametrize(
    "to", [*(pytest.param(to, marks=pytest.mark.peer) for to in PEERS), pytest.param("vit_jax", marks=pytest.mark.slow)]
)
def test_right_and_wrong_weights(to, pretrained, tmp_path, request):
    if to in PEERS:
        request.getfixturevalue(PEERS[to])
    path = tmp_path / ("x.npz" if to == "npz" else "x")
    write.save(pretrained, path, to)
    rows = verify.verify(pretrained, [path])
    pixels = [] if to == "npz" else [("photographs", "pixel")]  # TensorFlow is not at hand, and a sidecar speaks
    assert [(row.images, row.output) for row in rows] == [*pixels, ("noise", "logit"), ("photographs", "logit")]
    assert all(row.ok and row.largest > 0.1 for row in rows), rows
    assert all(row.difference <= (1.01 if row.output == "pixel" else 2e-5) for row in rows), rows
    # one weight of one matrix is off: the difference is seen
    kernel = pretrained.params["encoder/block_1/mlp/mlp_in/kernel"].read()
    kernel[3, 5] += 0.5
    assert not any(row.ok for row in verify.verify(pretrained, [path]) if row.output != "pixel")
    assert all(str(path) in row.peer for row in rows)


def test_what_counts_as_equal():
    def row(difference, largest):
        return verify.Difference("x", "noise", difference, largest)

    assert row(1.9e-5, 0.1).ok and row(1.9e-4, 10.0).ok
    assert not row(2.1e-5, 0.1).ok and not row(2.1e-4, 10.0).ok
    assert not row(float("nan"), 1.0).ok and not row(float("inf"), 1.0).ok
    pixels = [verify.Difference("x", "photographs", gap, 255.0, "pixel").ok for gap in (0.0, 1.0, 1.1, 2.0, np.nan)]
    assert pixels == [True, True, False, False, False]


def test_the_images(tmp_path):
    noise = verify.noise(PREPROCESS)
    assert noise.shape == (4, 24, 24, 3) and abs(noise.std() - 1) < 0.05
    rest = dataclasses.replace(PREPROCESS, frame=dataclasses.replace(PREPROCESS.frame, rest=3))
    assert verify.noise(rest).shape == (4, 27, 27, 3)
    sizes = {}
    for file in verify.photographs(tmp_path):
        with PIL.Image.open(file) as image:
            sizes[file.stem] = image.size
    assert sizes["wide"][0] > sizes["wide"][1] and sizes["tall"][0] < sizes["tall"][1] and max(sizes["tiny"]) < 40
    assert sizes["square"][0] == sizes["square"][1]


def test_grey_levels():
    """In the steps of a file, of what both see: the edge that no patch covers is left out."""
    preprocess = dataclasses.replace(PREPROCESS, frame=dataclasses.replace(PREPROCESS.frame, rest=3))
    ours = np.zeros((1, 24, 24, 3), np.float32)
    theirs = np.zeros((1, 27, 27, 3), np.float32)
    theirs[:, 24:], theirs[0, 3, 4, 1] = 9, 2 / 255 / 0.224
    assert verify.grey_levels(ours, theirs, preprocess) == pytest.approx(2)
    assert verify.grey_levels(ours, theirs[:, :20, :20], preprocess) == float("inf")


@pytest.mark.peer
@pytest.mark.parametrize("to", ["timm", "hf"])
def test_wrong_pixels_are_seen(to, pretrained, tmp_path, request):
    """The file beside the weights is read by the project's own processor: what we make of it otherwise shows."""
    request.getfixturevalue(PEERS[to])
    write.save(pretrained, tmp_path / "x", to)
    assert all(row.ok for row in verify.verify(pretrained, [tmp_path / "x"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            framing.ROUNDINGS, {"timm": "torchvision", "hf": "transformers"}[to], framing.ROUNDINGS["vit_jax"]
        )
        rows = verify.verify(pretrained, [tmp_path / "x"])
    assert [row.output for row in rows if not row.ok] == ["pixel"]


def test_float32_whatever_the_run_computed_in(pretrained):
    low = dataclasses.replace(pretrained, model=MODEL.clone(dtype="bfloat16"))
    batch = verify.noise(PREPROCESS)
    low, full = (verify.outputs(p)(batch) for p in (low, pretrained))
    assert full.keys() == {"logit"} and full["logit"].shape == (4, 5)
    np.testing.assert_array_equal(low["logit"], full["logit"])


@pytest.fixture
def pair(rng):
    image = {"name": "vit", "num_classes": 0, "patch": 8, "width": 32, "depth": 1, "heads": 4, "mlp_dim": 40}
    text = {"vocab_size": 259, "length": 6, "end_id": 2, "width": 32, "depth": 1, "heads": 2, "mlp_dim": 40}
    model = models.create(
        "coca", image_tower=image, text_tower={**text, "pool": "cls"}, embed_dim=16, queries=3, pool_heads=2,
        decoder={"depth": 1, "heads": 2, "mlp_dim": 40}, bias=0.5,
    )  # fmt: skip
    params = {
        p: Tensor.of(rng.normal(size=s, scale=0.3).astype(np.float32)) for p, s in describe.shapes(model, 24).items()
    }
    return Stored(model, params, PREPROCESS, encoder=TextCodec(open_tokenizer("bytes"), 6))


def test_the_texts(pair):
    rows = verify.texts(pair, 50)
    assert rows.shape == (50, 6) and rows.dtype == np.int32 and (rows[:, 0] == 1).all()
    ends = np.argmax(rows == 2, axis=1)
    assert ends[0] == 5 and set(ends) == {2, 3, 4, 5} and ((rows == 2).sum(axis=1) == 1).all()
    for row, end in zip(rows, ends, strict=True):
        assert (row[end + 1 :] == 0).all() and (row[1:end] > 2).all()
    bare = verify.texts(dataclasses.replace(pair, encoder=None), 9)
    assert (bare[:, 0] > 0).all() and (bare[0] > 0).all()


def test_outputs_of_images_and_texts(pair):
    images, texts = verify.noise(PREPROCESS), verify.texts(pair, 4)
    assert texts.shape == (4, 6)
    out = verify.outputs(pair)(images, texts)
    np.testing.assert_allclose(np.linalg.norm(out["text embedding"], axis=1), 1, atol=1e-6)
    scale = np.exp(pair.params["logit_scale"].read())
    want = scale * out["image embedding"] @ out["text embedding"].T + pair.params["logit_bias"].read()
    np.testing.assert_allclose(out["logit"], want, atol=1e-5)
    assert out["caption logit"].shape == (4, 6, 259)
    padding = np.cumsum(texts == 2, axis=1) - (texts == 2) > 0
    assert padding.any() and not out["caption logit"][padding].any() and out["caption logit"][~padding].all()


def test_a_pair_through_our_own_format(pair, tmp_path):
    write.save(pair, tmp_path / "run", "vit_jax")
    rows = verify.verify(pair, [tmp_path / "run"])
    assert len(rows) == 9 and all(row.difference == 0 for row in rows)
    pair.params["logit_bias"] = Tensor.of(np.float32(pair.params["logit_bias"].read() + 0.01))
    assert [r.output for r in verify.verify(pair, [tmp_path / "run"]) if not r.ok] == ["logit"] * 2
