"""Zero-shot classification with a table for a text tower, against float64 written out."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from tests.evals.contexts import PROGRAMS, pictured, score
from vit_jax import sharding
from vit_jax.data.prompts import TEMPLATES
from vit_jax.evals import ZeroShot
from vit_jax.evals.zero_shot import text_classifier
from vit_jax.types import UserError

E = 6
SHAPES: list[tuple[int, ...]] = []


class Codec:
    """A text codec: the id of a text is its place among all texts it ever saw; a text of 30 letters does not fit."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += [t for t in dict.fromkeys(texts) if t not in self.texts]
        return np.array([[self.texts.index(t), 0] for t in texts], np.int32)

    def truncated(self, texts: Sequence[str]) -> int:
        return sum(len(t) >= 30 for t in texts)


def apply(params: Any, x: jax.Array, *, train: bool, method: str) -> jax.Array:
    """An image is its embedding; texts are looked up, and left at the length that they have."""
    assert not train
    SHAPES.append(x.shape)
    return x if method == "embed_image" else params["table"][x[:, 0]]


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Task:
    """N images of C classes near the mean direction of their class' prompts; lengths of texts vary a hundredfold."""

    def __init__(self, rng: np.random.Generator, n: int = 61, names: Sequence[str] = ("cat", "dog", "a bee", "eel")):
        self.names, self.codec, c = tuple(names), Codec(), len(names)
        self.templates = TEMPLATES["simple"]
        tokens = self.codec([t.replace("{}", name) for name in names for t in self.templates])
        centres = rng.normal(size=(c, E))
        directions = unit(np.repeat(centres, len(self.templates), 0) + 2 * rng.normal(size=(len(tokens), E)))
        self.table = (directions * np.exp(rng.uniform(-2, 2, (len(tokens), 1)))).astype(np.float32)
        self.tokens = tokens.reshape(c, -1, 2)
        self.label = rng.integers(0, c, n).astype(np.int32)
        self.image = unit(centres[self.label] + 1.2 * rng.normal(size=(n, E))).astype(np.float32)

    def info(self, **change: Any) -> Any:
        facts = {"num_classes": len(self.names), "class_names": self.names, "encoder": self.codec}
        return types.SimpleNamespace(**(facts | change))

    def classifier(self) -> np.ndarray:
        return unit(unit(self.table).reshape(len(self.names), -1, E).mean(1))

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        order = np.arange(len(self.label)) if order is None else order
        for start in range(0, len(order), size):
            at = order[start : start + size]
            pad = size - len(at)
            image = np.concatenate([self.image[at], np.full((pad, E), np.nan, np.float32)])
            yield {"image": image, "label": np.pad(self.label[at], (0, pad)), "mask": np.arange(size) < len(at)}

    def evaluate(self, batches: Any = None, *, info: Any = None, **options: Any) -> Any:
        batches = self.batches(8) if batches is None else batches
        params = {"table": jnp.asarray(self.table)}
        return score(ZeroShot(**{"templates": "simple", **options}), apply, params, batches, info or self.info())


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(np.random.default_rng(0))


def test_against_float64(task: Task) -> None:
    report = task.evaluate()
    np.testing.assert_allclose(report.arrays["zero_shot/classifier"], task.classifier(), atol=1e-6)
    cosines = task.image @ task.classifier().T
    guess = cosines.argmax(1)
    assert report.metrics == pytest.approx({
        "zero_shot/accuracy": sklearn.metrics.accuracy_score(task.label, guess), "zero_shot/top5": 1.0,
        "zero_shot/mean_class_accuracy": sklearn.metrics.balanced_accuracy_score(task.label, guess),
        "zero_shot/examples": 61,
    })  # fmt: skip
    assert tuple(report.metrics) == ZeroShot.metrics and 0.5 < report.metrics["zero_shot/accuracy"] < 1
    matrix = sklearn.metrics.confusion_matrix(task.label, guess)
    np.testing.assert_array_equal(report.table.arrays["confusion"], matrix)


def test_each_prompt_counts_the_same_however_long_its_embedding() -> None:
    """Class 0 has one text of length 100 to the east and two of length 1 to the north: it lies north by north-east."""
    table = np.array([[100, 0], [0, 1], [0, 1], [3, -4], [3, -4], [3, -4]], np.float32)
    got = text_classifier(lambda t: table[t[:, 0]], 4, np.arange(6).reshape(2, 3, 1))
    np.testing.assert_allclose(got, [[1 / 5**0.5, 2 / 5**0.5], [0.6, -0.8]], rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("rows", [1, 4, 28, 64])
def test_texts_go_in_batches_of_one_size(rows: int, task: Task) -> None:
    sizes = []

    def embed(tokens: np.ndarray) -> np.ndarray:
        sizes.append(len(tokens))
        return task.table[tokens[:, 0]]

    np.testing.assert_allclose(text_classifier(embed, rows, task.tokens), task.classifier(), atol=1e-7)
    assert set(sizes) == {rows} and len(sizes) == -(-28 // rows)


def test_order_batch_size_and_devices_do_not_matter(task: Task, rng: np.random.Generator) -> None:
    want = task.evaluate()
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = task.evaluate(sharding.put(b, mesh) for b in task.batches(8))
    for got in (task.evaluate(task.batches(8, rng.permutation(61))), task.evaluate(task.batches(61)), split):
        assert got.metrics == pytest.approx(want.metrics)
        np.testing.assert_array_equal(got.table.arrays["confusion"], want.table.arrays["confusion"])
        np.testing.assert_allclose(got.arrays["zero_shot/classifier"], want.arrays["zero_shot/classifier"], atol=1e-6)


def test_compiled_once_and_texts_embedded_once_a_call(task: Task) -> None:
    PROGRAMS.clear()
    SHAPES.clear()
    first = task.evaluate()
    assert SHAPES == [(256, 2), (8, E)]
    assert task.evaluate().metrics == first.metrics and len(SHAPES) == 2
    other = jax.tree.map(lambda x: -x, {"table": jnp.asarray(task.table)})  # other parameters, other class embeddings
    got = score(ZeroShot(templates="simple"), apply, other, task.batches(8), task.info())
    np.testing.assert_allclose(got.arrays["zero_shot/classifier"], -first.arrays["zero_shot/classifier"], atol=1e-6)


def test_a_perfect_and_a_collapsed_model() -> None:
    task = Task(np.random.default_rng(1))
    task.image = task.classifier()[task.label].astype(np.float32)
    assert task.evaluate().metrics["zero_shot/accuracy"] == 1
    task.table[:], task.image[:] = 1, 1
    got = task.evaluate().metrics
    assert got["zero_shot/mean_class_accuracy"] == 1 / 4
    assert got["zero_shot/accuracy"] == np.mean(task.label == 0)
    task.image[:] = np.nan
    got = task.evaluate().metrics
    assert got["zero_shot/accuracy"] == got["zero_shot/top5"] == 0 and got["zero_shot/nonfinite"] == 61


def test_top5_of_many_classes() -> None:
    task = Task(np.random.default_rng(2), n=200, names=[f"class {i}" for i in range(12)])
    got = task.evaluate(task.batches(50)).metrics
    cosines = task.image @ task.classifier().T
    want = sklearn.metrics.top_k_accuracy_score(task.label, cosines, k=5, labels=range(12))
    assert got["zero_shot/top5"] == pytest.approx(want) and got["zero_shot/accuracy"] < want < 1


def test_names_and_templates_from_config_or_files(task: Task, tmp_path: pathlib.Path) -> None:
    want = task.evaluate().metrics
    numbered = task.info(class_names=("0", "1", "2", "3"))
    assert task.evaluate(info=numbered, classes=task.names).metrics == want
    (tmp_path / "names.txt").write_text("\n".join(task.names))
    (tmp_path / "templates.txt").write_text("\n".join(task.templates))
    files = {"classes": str(tmp_path / "names.txt"), "templates": str(tmp_path / "templates.txt")}
    assert task.evaluate(info=numbered, **files).metrics == want
    assert task.evaluate(info=numbered, classes=task.names).class_names == task.names
    swapped = task.evaluate(classes=(task.names[1], task.names[0], *task.names[2:])).metrics
    assert swapped["zero_shot/accuracy"] < want["zero_shot/accuracy"]  # names are in the order of the labels


def test_prompts_that_do_not_fit_are_counted() -> None:
    task = Task(np.random.default_rng(3), names=("cat", "a dog of great length"))
    long = sum(len(t.replace("{}", n)) >= 30 for n in task.names for t in task.templates)
    assert 0 < long < 14 and task.evaluate().metrics["zero_shot/truncated_prompts"] == long


def test_what_cannot_be_evaluated(task: Task) -> None:
    with pytest.raises(UserError, match="3 names, but the data has 4 classes"):
        task.evaluate(classes=("a", "b", "c"))
    with pytest.raises(UserError, match="needs data with classes; set its field data"):
        task.evaluate(info=task.info(num_classes=0, class_names=()))
    with pytest.raises(UserError, match="needs data with classes"):
        task.evaluate(info=task.info(num_classes=0, class_names=()), classes=task.names)
    with pytest.raises(UserError, match="needs a model of images and texts"):
        task.evaluate(info=task.info(encoder=None))
    with pytest.raises(UserError, match="did you mean 'simple'"):
        task.evaluate(templates="simpel")
    with pytest.raises(UserError, match="nothing to evaluate"):
        task.evaluate([])


def test_save(task: Task, tmp_path: pathlib.Path) -> None:
    report = task.evaluate()
    report = dataclasses.replace(report, table=pictured(report.table))
    report.save(tmp_path, ("classes", "of", "training"), step=1)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"] == pytest.approx(report.metrics)
    assert [row["class"] for row in results["zero_shot"]["per_class"]] == list(task.names)
    assert set(results["zero_shot"]) == {"per_class", "confusions"} and results["zero_shot"]["confusions"]
    pictures = {"zero_shot_confusion.png", "zero_shot_mistakes.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", *pictures}
