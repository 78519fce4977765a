"""Retrieval against loops over sorted lists; the "model" reads embeddings from the image's pixels and from a table."""

import json
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.contexts import PROGRAMS, score
from vit_jax import sharding
from vit_jax.evals import Retrieval
from vit_jax.types import UserError

PAD = 0
SHAPES: list[tuple[int, ...]] = []


def apply(params: Any, x: jax.Array, *, train: bool, method: str) -> jax.Array:
    """An image's embedding is its pixels, a text's is row ``first token`` of a table."""
    assert not train
    SHAPES.append(x.shape)
    found = x.reshape(len(x), -1) if method == "embed_image" else params["table"][x[:, 0]]
    return found / jnp.linalg.norm(found, axis=-1, keepdims=True)


class Words:
    """Decodes tokens (of one row) as the evaluator needs it."""

    def decode(self, ids: np.ndarray) -> str:
        assert ids.ndim == 1
        return f"caption {ids[0]}"


INFO: Any = types.SimpleNamespace(num_classes=0, class_names=(), encoder=Words())


class Data:
    """N images of 2x2 pixels; image i has captions[i] captions, tokens first[i] .. first[i] + captions[i] - 1."""

    def __init__(self, rng: np.random.Generator, captions: list[int], noise: float = 1.0) -> None:
        n, self.captions = len(captions), np.array(captions, np.int32)
        self.image = rng.normal(size=(n, 2, 2, 3)).astype(np.float32)
        self.owner = np.repeat(np.arange(n), captions)
        near = self.image.reshape(n, -1)[self.owner]
        rows = near + noise * rng.normal(size=near.shape)
        self.table = np.concatenate([np.full((1, 12), np.nan), rows]).astype(np.float32)  # token 0: padding
        self.text = np.full((n, max(captions), 3), PAD, np.int32)
        for i, token in zip(self.owner, 1 + np.arange(len(self.owner)), strict=True):
            self.text[i, np.count_nonzero(self.text[i, :, 0])] = token

    @property
    def params(self) -> dict[str, jax.Array]:
        return {"table": jnp.asarray(self.table)}

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        """As the loader makes them; rows that fill up the last batch are poisoned and have a caption."""
        order = np.arange(len(self.image)) if order is None else order
        for start in range(0, len(order), size):
            at = order[start : start + size]
            pad = size - len(at)

            def fill(x: np.ndarray, value: Any, pad: int = pad) -> np.ndarray:
                return np.concatenate([x, np.full((pad, *x.shape[1:]), value, x.dtype)])

            yield {
                "image": fill(self.image[at], np.nan),
                "text": fill(self.text[at], 1),
                "captions": fill(self.captions[at], 1),
                "mask": np.arange(size) < len(at),
                "index": fill(at.astype(np.uint32), 0),
            }

    def evaluate(self, batches: Any = None, **options: Any) -> Any:
        batches = self.batches(8) if batches is None else batches
        return score(Retrieval(**options), apply, self.params, batches, INFO)


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(data: Data) -> dict[str, float]:
    """R@k and median ranks from sorted lists, in float64."""
    sims = unit(data.image.reshape(len(data.image), -1)) @ unit(data.table[1:]).T
    i2t, t2i = [], []
    for i, row in enumerate(sims):
        if data.captions[i]:
            owners = data.owner[np.argsort(-row)].tolist()
            i2t.append(owners.index(i) + 1)
    for j, column in enumerate(sims.T):
        t2i.append(np.argsort(-column).tolist().index(data.owner[j]) + 1)
    out = {}
    for name, places in (("i2t", i2t), ("t2i", t2i)):
        out |= {f"{name}_r{k}": float(np.mean([p <= k for p in places])) for k in (1, 5, 10)}
        out[f"{name}_median_rank"] = float(np.median(places))
    counts = {"images": float(len(data.image)), "captions": float(len(data.owner))}
    return {**out, "mean_r1": (out["i2t_r1"] + out["t2i_r1"]) / 2, **counts}


RAGGED = [3, 1, 2, 5, 1, 1, 4, 2, 2, 3, 1, 5, 1, 2, 1, 3, 2, 1, 1, 4, 2, 1, 3]


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(np.random.default_rng(0), RAGGED)


def test_against_loops(data: Data) -> None:
    report = data.evaluate()
    want = by_loops(data)
    assert report.metrics == pytest.approx(want, abs=1e-12) and 0.2 < want["mean_r1"] < 0.9
    assert tuple(report.metrics) == Retrieval.metrics
    assert report.arrays["i2t_rank"].shape == (23,) and report.arrays["t2i_rank"].shape == (sum(RAGGED),)


def test_order_batch_size_and_devices_do_not_matter(data: Data, rng: np.random.Generator) -> None:
    want = data.evaluate().metrics
    assert data.evaluate(data.batches(8, rng.permutation(23))).metrics == pytest.approx(want)
    assert data.evaluate(data.batches(23)).metrics == pytest.approx(want)
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = data.evaluate(sharding.put(b, mesh) for b in data.batches(8))
    assert split.metrics == pytest.approx(want)
    assert split.sheet.rows() == data.evaluate().sheet.rows()
    for i, picture in split.sheet.images.items():
        np.testing.assert_array_equal(picture, data.image[i])


def test_one_compilation_and_a_batch_of_texts_at_a_time(data: Data) -> None:
    PROGRAMS.clear()
    SHAPES.clear()
    data.evaluate()
    assert SHAPES == [(8, 3), (8, 2, 2, 3)]  # traced once; five captions an image, eight texts at once
    data.evaluate()
    assert len(SHAPES) == 2


def test_a_perfect_model() -> None:
    data = Data(np.random.default_rng(1), RAGGED, noise=0)
    got = data.evaluate().metrics
    assert {k: v for k, v in got.items() if "_r" in k} == {
        **{f"{way}_r{k}": 1.0 for way in ("i2t", "t2i") for k in (1, 5, 10)},
        "i2t_median_rank": 1.0,
        "t2i_median_rank": 1.0,
        "mean_r1": 1.0,
    }


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_model_scores_as_guessing_does(value: float) -> None:
    data = Data(np.random.default_rng(1), RAGGED)
    data.image[:], data.table[:] = value, value
    got = data.evaluate().metrics
    n, t, c = 23, sum(RAGGED), np.array(RAGGED)
    assert got["t2i_r1"] == pytest.approx(1 / n) and got["t2i_r5"] == pytest.approx(5 / n)
    assert got["t2i_median_rank"] == pytest.approx((n + 1) / 2)
    assert got["i2t_r1"] == pytest.approx(np.mean(c / t))
    miss = np.prod([(t - c - i) / (t - i) for i in range(5)], axis=0)
    assert got["i2t_r5"] == pytest.approx(np.mean(1 - miss))
    assert got.get("nonfinite", 0) == (0 if value == 1 else n + t)


def test_the_first_captions_only(data: Data) -> None:
    few = Data(np.random.default_rng(0), RAGGED)
    keep = np.concatenate([np.arange(c) < 2 for c in RAGGED])
    few.table, few.owner = few.table[np.concatenate([[True], keep])], few.owner[keep]
    few.captions = np.minimum(few.captions, 2)
    assert data.evaluate(captions=2).metrics == pytest.approx(by_loops(few))
    with pytest.raises(UserError, match="captions=0 is not allowed"):
        Retrieval(captions=0)


def test_images_without_captions_are_found_by_mistake_only() -> None:
    captions = [0, 2, 1, 0, 3, 1, 1, 2, 1, 1, 0]
    data = Data(np.random.default_rng(3), captions, noise=3)
    got = data.evaluate(data.batches(3))
    assert got.metrics.pop("images_without_caption") == 3
    assert got.metrics == pytest.approx(by_loops(data))
    late = data.evaluate(data.batches(1))  # a first batch without any caption
    assert late.metrics.pop("images_without_caption") == 3 and late.metrics == pytest.approx(got.metrics)
    assert late.sheet.own.tolist() == [1]


def test_contact_sheet(data: Data, tmp_path: pathlib.Path) -> None:
    report = data.evaluate()
    sims = unit(data.table[1:]) @ unit(data.image.reshape(23, -1)).T
    first = np.cumsum([0, *RAGGED])[:8]
    rows = report.sheet.rows()
    for i, (row, query) in enumerate(zip(rows, first, strict=True)):
        order = np.argsort(-sims[query])
        assert row == {
            "caption": f"caption {query + 1}", "image": i, "nearest": order[:5].tolist(),
            "rank": order.tolist().index(i) + 1,
        }  # fmt: skip
    wanted = {i for row in rows for i in (*row["nearest"], row["image"])}
    assert set(report.sheet.images) == wanted  # nothing else is kept
    for i in wanted:
        np.testing.assert_array_equal(report.sheet.images[i], data.image[i])
    report.save(tmp_path, ("a", "b"), step=3)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["retrieval"] == rows and results["metrics"] == pytest.approx(report.metrics)
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "retrieval.png"}


def test_fewer_images_than_the_sheet_has_columns(tmp_path: pathlib.Path) -> None:
    data = Data(np.random.default_rng(0), [1, 2])
    report = data.evaluate()
    assert [sorted(row["nearest"]) for row in report.sheet.rows()] == [[0, 1]] * 2
    report.save(tmp_path, ())
    assert (tmp_path / "retrieval.png").stat().st_size > 1000


def test_what_cannot_be_evaluated(data: Data) -> None:
    images = [{k: b[k] for k in ("image", "mask", "index")} for b in data.batches(8)]
    with pytest.raises(UserError, match="needs captions"):
        data.evaluate(images)
    with pytest.raises(UserError, match="nothing to evaluate"):
        data.evaluate([])
    with pytest.raises(UserError, match="no image of the data has a caption"):
        data.evaluate({**b, "captions": b["captions"] * 0} for b in data.batches(8))
    with pytest.raises(UserError, match="needs a model of images and texts"):
        score(Retrieval(), apply, data.params, [], types.SimpleNamespace(encoder=None))
