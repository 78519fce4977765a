"""The evaluator against scikit-learn, over ragged batches, masks and 8 devices."""

import json
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from tests.evals.contexts import PROGRAMS, pictured, score
from vit_jax import sharding
from vit_jax.evals import EvalContext, classify
from vit_jax.evals.calibration import reliability
from vit_jax.evals.classify import Classify
from vit_jax.models import ImageModel, create
from vit_jax.objectives import Classify as Objective
from vit_jax.types import UserError


def info(c: int) -> Any:
    return types.SimpleNamespace(num_classes=c, class_names=tuple(f"class {i}" for i in range(c)))


def apply(params: dict[str, jax.Array], image: jax.Array, *, train: bool) -> jax.Array:
    """The "model": the image is its logits, the parameters a factor that the tests leave at 1."""
    assert not train
    return image * params["scale"]


PARAMS = {"scale": jnp.float32(1)}


def evaluate(batches: Any, c: int, output_activation: str = "softmax", **options: Any) -> Any:
    return score(Classify(**options), apply, PARAMS, batches, info(c), Objective(output_activation))


def batches(logits: np.ndarray, labels: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    """As the loader makes them: the last one filled up with rows whose mask is False (here poisoned)."""
    for i in range(0, len(logits), size):
        z, y = logits[i : i + size], labels[i : i + size]
        pad = size - len(z)
        z = np.concatenate([z, np.full((pad, z.shape[1]), np.nan, z.dtype)])
        yield {"image": z, "label": np.pad(y, (0, pad)), "mask": np.arange(size) < size - pad}


def data(rng: np.random.Generator, n: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, c, n).astype(np.int32)
    return (rng.normal(0, 1.5, (n, c)) + 2 * np.eye(c)[labels]).astype(np.float32), labels


@pytest.mark.parametrize(("n", "c", "size"), [(101, 7, 16), (64, 3, 64), (5, 12, 8)])
def test_against_sklearn(n: int, c: int, size: int, rng: np.random.Generator) -> None:
    logits, labels = data(rng, n, c)
    report = evaluate(batches(logits, labels, size), c)
    p = scipy.special.softmax(logits.astype(np.float64), 1)
    guess = p.argmax(1)
    got, every = report.metrics, range(c)
    assert got["accuracy"] == sklearn.metrics.accuracy_score(labels, guess)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=every) if c > 5 else 1.0
    assert got["top5"] == top5 and got["examples"] == n
    np.testing.assert_allclose(got["loss"], sklearn.metrics.log_loss(labels, p, labels=every), rtol=1e-6)
    np.testing.assert_allclose(got["ece"], reliability(p.max(1), guess == labels, 15).ece(), atol=1e-6)
    matrix = sklearn.metrics.confusion_matrix(labels, guess, labels=every)
    np.testing.assert_array_equal(report.arrays["confusion"], matrix)
    examples = matrix.sum(1)
    np.testing.assert_array_equal(report.arrays["class_examples"], examples)
    seen = examples > 0
    recall = np.diag(matrix)[seen] / examples[seen]
    np.testing.assert_allclose(report.arrays["per_class_accuracy"][seen], recall)
    assert np.isnan(report.arrays["per_class_accuracy"][~seen]).all()
    np.testing.assert_allclose(got["mean_class_accuracy"], recall.mean())


def test_sigmoid_link_changes_loss_and_confidence_only(rng: np.random.Generator) -> None:
    logits, labels = data(rng, 30, 4)
    soft, sig = (
        evaluate(batches(logits, labels, 8), 4, output_activation, bins=10)
        for output_activation in ("softmax", "sigmoid")
    )
    assert sig.metrics["accuracy"] == soft.metrics["accuracy"] and sig.output_activation == "sigmoid"
    p, t = scipy.special.expit(logits.astype(np.float64)), np.eye(4)[labels]
    np.testing.assert_allclose(
        sig.metrics["loss"], -np.mean((t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1)), rtol=1e-6
    )
    diagram = reliability(p.max(1), p.argmax(1) == labels, 10)
    np.testing.assert_array_equal(sig.arrays["bin_examples"], diagram.examples)
    np.testing.assert_allclose(sig.metrics["ece"], diagram.ece(), atol=1e-6)


def test_nothing_depends_on_batch_size_or_devices(rng: np.random.Generator) -> None:
    logits, labels = data(rng, 53, 6)
    want = evaluate(batches(logits, labels, 53), 6)
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    split = (sharding.put(b, mesh) for b in batches(logits, labels, 16))
    for got in (evaluate(split, 6), evaluate(batches(logits, labels, 7), 6)):
        for name, value in want.metrics.items():
            np.testing.assert_allclose(got.metrics[name], value, rtol=1e-6 if name in ("loss", "ece") else 0)
        for name, array in want.arrays.items():
            np.testing.assert_allclose(got.arrays[name], array, rtol=1e-6 if name == "bin_confidence" else 0)


def test_no_device_holds_the_whole_batch(rng: np.random.Generator) -> None:
    logits, labels = data(rng, 16, 3)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    seen = []

    def spy(params: Any, image: jax.Array, *, train: bool) -> jax.Array:
        jax.debug.inspect_array_sharding(image, callback=seen.append)
        return apply(params, image, train=train)

    split = (sharding.put(b, mesh) for b in batches(logits, labels, 16))
    with jax.set_mesh(mesh):
        score(Classify(), spy, PARAMS, split, info(3), Objective())
    assert [s.shard_shape((16, 3)) for s in seen] == [(2, 3)]


def test_one_compilation_for_all_batches(rng: np.random.Generator) -> None:
    logits, labels = data(rng, 40, 5)
    PROGRAMS.clear()
    for _ in range(2):
        evaluate(batches(logits, labels, 8), 5)
    (program,) = PROGRAMS.values()
    assert program._cache_size() == 1


def test_ties_go_to_the_lower_class_as_in_argmax() -> None:
    logits, labels = np.zeros((7, 7), np.float32), np.arange(7, dtype=np.int32)
    report = evaluate(batches(logits, labels, 4), 7)
    assert report.metrics["accuracy"] == 1 / 7 and report.metrics["top5"] == 5 / 7
    np.testing.assert_array_equal(report.arrays["class_correct"], np.arange(7) == 0)
    np.testing.assert_array_equal(report.arrays["confusion"][:, 0], np.ones(7))


def test_nan_logits_are_wrong_and_counted(rng: np.random.Generator) -> None:
    logits, labels = data(rng, 10, 3)
    logits[4] = np.nan
    logits[6, (labels[6] + 1) % 3] = np.nan
    report = evaluate(batches(logits, labels, 4), 3)
    whole = np.isfinite(logits).all(1)
    assert report.metrics["nonfinite"] == 2 and np.isnan(report.metrics["loss"])
    assert report.metrics["accuracy"] == np.sum(logits[whole].argmax(1) == labels[whole]) / 10
    assert report.metrics["top5"] == 0.8


def test_no_example_is_an_error() -> None:
    empty = {"image": np.zeros((2, 3), np.float32), "label": np.zeros(2, np.int32), "mask": np.zeros(2, bool)}
    for given in ([], [empty]):
        with pytest.raises(UserError, match="nothing to evaluate"):
            evaluate(given, 3)


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="scores classifiers, and ImageModel trained with SimpleNamespace is none"):
        score(Classify(), apply, PARAMS, [], info(3), types.SimpleNamespace(output_activation=None))
    context = EvalContext(create("clip_vit_b32"), apply, PARAMS, Objective(), info(3), (), lambda *_: [])
    with pytest.raises(UserError, match="TwoTower trained with Classify is none"):
        Classify()(context)


def test_data_of_other_classes_is_refused() -> None:
    def context(names: tuple[str, ...]) -> EvalContext:
        return EvalContext(ImageModel(), apply, PARAMS, Objective(), info(3), names, lambda *_: [])

    with pytest.raises(UserError, match=r"the model has the classes class 0, x, .* \(first difference: x"):
        Classify()(context(("class 0", "x", "class 2")))
    with pytest.raises(UserError, match="nothing to evaluate"):
        Classify()(context(("0", "1", "2")))  # a model that knows numbers only


def test_save_writes_results_and_pictures(tmp_path: pathlib.Path) -> None:
    logits = np.array([[3, 0, 0], [3, 0, 0], [0, 3, 0], [3, 0, 0]], np.float32)
    labels = np.array([0, 1, 1, 1], np.int32)
    report = evaluate(batches(logits, labels, 3), 3, bins=2)
    assert [(row.label, row.prediction) for row in report.mistakes.rows] == [(1, 0), (1, 0)]
    pictured(report).save(tmp_path, ("a", "b", "c"), step=9)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 9 and results["output_activation"] == "softmax" and results["metrics"]["accuracy"] == 0.5
    assert results["confusions"] == [{"true": "b", "predicted": "a", "count": 2}]
    assert results["per_class"][1] == {"class": "b", "examples": 3, "correct": 1, "accuracy": 1 / 3}
    assert results["per_class"][2] == {"class": "c", "examples": 0, "correct": 0, "accuracy": None}
    assert results["reliability"][0] == {"above": 0, "to": 0.5, "examples": 0, "confidence": None, "accuracy": None}
    assert results["reliability"][1]["examples"] == 4
    pictures = {"confusion.png", "reliability.png", "mistakes.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", *pictures}


def test_many_classes_leave_out_the_matrix_and_say_so(
    tmp_path: pathlib.Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "MAX_CONFUSION_CLASSES", 10)
    logits, labels = data(rng, 20, 11)
    report = evaluate(batches(logits, labels, 8), 11)
    pictured(report).save(tmp_path, info(11).class_names)
    assert "confusion" not in report.arrays and not (tmp_path / "confusion.png").exists()
    assert json.loads((tmp_path / "results.json").read_text())["confusions"] is None
