"""The caption evaluator with a "generator" that reads captions from pixels: batches, references, counts, tables."""

import json
import types
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.contexts import PROGRAMS, score
from vit_jax import sharding
from vit_jax.config import Choice, parse
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.decoding import Beam, Captions, Greedy
from vit_jax.evals import EVALUATORS, Caption, caption
from vit_jax.evals.caption_metrics import CAPTION_METRICS
from vit_jax.types import UserError

L = 24  # = 2 * 4 * 3 pixels
CODEC = TextCodec(open_tokenizer("bytes"), L)
INFO = types.SimpleNamespace(num_classes=0, class_names=(), encoder=CODEC)
WRITTEN = ["a red two", "a cat on a mat", "a cat", "seven", "a dog under a tree", "blue three", "a nine"]
THEIRS = [
    ["a red two", "the two is red"], ["the cat on a mat"], [], ["a seven", "seven", "a small seven"],
    ["a dog by a tree", "some dog"], ["a blue three"], ["a six"],
]  # fmt: skip
CALLS = []


def generate(apply, params, image, *, rows, **options):
    """Captions are pixels, written backwards unless the parameters say +1; log-probabilities name the image."""
    CALLS.append((apply, options))
    tokens = image.reshape(len(image), L) * params["sign"]
    return Captions(tokens.astype(jnp.int32), -rows.astype(jnp.float32))


@pytest.fixture(autouse=True)
def _patched(monkeypatch):
    CALLS.clear()
    monkeypatch.setattr(caption, "generate", generate)
    PROGRAMS.clear()


def batches(size, written=None, theirs=THEIRS, text=True):
    """As the loader makes them: the last one is filled up with rows whose mask is False."""
    images = CODEC(WRITTEN) if written is None else written
    index = 100 + np.arange(len(images))
    for start in range(0, len(images), size):
        at = np.arange(start, start + size)
        mask = at < len(images)
        at = np.minimum(at, len(images) - 1)
        refs = [theirs[i] for i in at]
        rows = np.stack([CODEC([*r, *[""] * 3][:3]) for r in refs])
        batch = {"image": images[at].reshape(size, 2, 4, 3).astype(np.float32), "mask": mask, "index": index[at]}
        batch |= {"text": rows, "captions": np.array([len(r) for r in refs], np.int32)} if text else {}
        yield batch


def evaluate(given, decoder=Greedy(), **fields):  # noqa: B008
    return score(Caption(decoder, **fields), "apply", {"sign": jnp.float32(1)}, given, INFO)


def test_scores_of_all_images_against_all_of_their_captions():
    report = evaluate(batches(3), Beam(2))
    keep = [i for i, refs in enumerate(THEIRS) if refs]
    written, theirs = [WRITTEN[i] for i in keep], [THEIRS[i] for i in keep]
    for name, metric in CAPTION_METRICS.items():
        expected = metric(written, theirs)
        assert report.metrics[name] == expected.value and expected.value > 0
        np.testing.assert_array_equal(report.arrays[name], expected.each)
    assert report.metrics["caption_images"] == 6 and report.metrics["images_without_caption"] == 1
    assert set(report.metrics) == {*Caption.metrics, "images_without_caption"}
    assert report.metrics["exact_match"] == 2 / 6
    assert report.arrays["index"].tolist() == [100 + i for i in keep]
    assert report.arrays["log_p"].tolist() == [-100.0 - i for i in keep]
    (name, options), *others = CALLS
    assert name == "apply" and others == []  # traced once for all batches
    assert options == {"start_id": 1, "end_id": 2, "pad_id": 0, "length": L, "decoder": Beam(2)}


def test_nothing_depends_on_batch_size_or_devices():
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    want = evaluate(batches(7))
    for got in (evaluate(batches(2)), evaluate(sharding.put(b, mesh) for b in batches(8))):
        assert got.metrics == want.metrics and list(got.examples) == list(want.examples)
        for name, array in want.arrays.items():
            np.testing.assert_array_equal(got.arrays[name], array)


def test_a_limit_takes_the_first_images_and_reads_no_further():
    seen = []
    given = (seen.append(1) or b for b in batches(2))
    report = evaluate(given, limit=4)
    assert len(seen) == 2
    assert report.arrays["index"].tolist() == [100, 101, 103] and report.metrics["caption_images"] == 3
    assert evaluate(batches(4), limit=2).arrays["index"].tolist() == [100, 101]
    with pytest.raises(UserError, match="limit=0 is not allowed"):
        Caption(limit=0)


def test_captions_without_an_end_and_without_a_number_are_counted():
    tokens = CODEC(WRITTEN)
    tokens[4] = np.where(tokens[4] == CODEC.tokenizer.end_id, 40, tokens[4])
    report = evaluate(batches(7, tokens))
    assert report.metrics["unended_captions"] == 1 and "nonfinite_captions" not in report.metrics
    found = {k: np.asarray(v) for b in batches(7) for k, v in b.items()}
    found |= {"tokens": CODEC(WRITTEN), "log_p": np.array([0, np.nan, np.nan, -1, -np.inf, 0, 0])}
    broken = caption.summarise(found, CODEC)
    assert broken.metrics["nonfinite_captions"] == 2  # and one of an image that is not scored


def test_results_show_examples(tmp_path):
    report = evaluate(batches(4))
    report.save(tmp_path, (), step=3)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 3 and results["metrics"]["caption_images"] == 6
    first, second, *_ = results["captions"]
    assert first["image"] == 100 and first["caption"] == "a red two" and first["references"] == THEIRS[0]
    assert second == {"image": 101, "caption": "a cat on a mat", "references": THEIRS[1], "cider_d": second["cider_d"]}
    assert second["cider_d"] == report.arrays["cider_d"][1]
    assert [row["image"] for row in results["captions"]] == [100, 101, 103, 104, 105, 106]


def test_mistakes():
    with pytest.raises(UserError, match="'caption' needs captions; its data has images alone"):
        evaluate(batches(3, text=False))
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate([])
    with pytest.raises(UserError, match="nothing to compare captions with: no image of the data has one"):
        evaluate(batches(3, theirs=[[]] * 7))
    with pytest.raises(UserError, match=r"'caption' needs a model of images and texts; set data\.text"):
        score(Caption(), "apply", {}, [], types.SimpleNamespace(encoder=None))
    start = types.SimpleNamespace(tokenizer=types.SimpleNamespace(start_id=None))
    with pytest.raises(UserError, match="no token that starts a text"):
        score(Caption(), "apply", {}, [], types.SimpleNamespace(encoder=start))


def test_in_a_configuration():

    kind = Annotated[object, Choice(EVALUATORS)]
    assert parse(kind, "caption(decoder=beam(3), limit=10)") == Caption(Beam(3), limit=10)
    assert parse(kind, {"name": "caption", "data": "csv:x"}) == Caption(Greedy(), data="csv:x")
