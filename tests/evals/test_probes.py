"""Probes: neighbours against loops and scikit-learn, the evaluators against the functions that they call."""

import dataclasses
import types
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors

from tests.evals.contexts import PROGRAMS, score
from vit_jax import config, sharding
from vit_jax.evals import EVALUATORS, KNN, LinearProbe, Retrieval, ZeroShot, linear
from vit_jax.evals.probes import neighbour_votes
from vit_jax.models.base import Features
from vit_jax.types import UserError

D, C = 5, 4
SHAPES: list[tuple[Any, ...]] = []


def apply(params: Any, image: jax.Array, *, train: bool, method: str) -> Any:
    """Features are the image and a constant; the embedding is half of them."""
    assert not train
    SHAPES.append((method, *image.shape))
    scaled = image * params["scale"]
    return scaled[:, :2] if method == "embed_image" else Features(scaled[:, None], scaled)


PARAMS = {"scale": jnp.float32(1)}
INFO: Any = types.SimpleNamespace(num_classes=C, class_names=tuple("abcd"))


def data(rng: np.random.Generator, n: int, c: int = C) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, c, n).astype(np.int32)
    centres = np.random.default_rng(7).normal(size=(c, D))
    return (1.5 * centres[labels] + rng.normal(size=(n, D))).astype(np.float32), labels


def batches(x: np.ndarray, y: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(x), size):
        pad = max(0, start + size - len(x))
        image = np.concatenate([x[start : start + size], np.full((pad, D), np.nan, np.float32)])
        yield {
            "image": image,
            "label": np.pad(y[start : start + size], (0, pad)),
            "mask": np.arange(size) < size - pad,
            "index": np.arange(start, start + size, dtype=np.uint32),
        }


def votes_by_loops(train: Any, labels: Any, x: Any, k: int, temperature: float) -> np.ndarray:
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    out = np.zeros((len(x), C))
    for i, query in enumerate(x.astype(np.float64)):
        sims = [
            (float(unit(query) @ unit(t)), int(label)) for t, label in zip(train.astype(float), labels, strict=True)
        ]
        for sim, label in sorted(sims, reverse=True)[:k]:
            out[i, label] += np.exp(sim / temperature)
    return out / out.sum(1, keepdims=True)


@pytest.mark.parametrize(("m", "n", "k", "temperature"), [(41, 13, 7, 0.07), (30, 9, 1, 0.5), (6, 5, 20, 0.1)])
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_votes_against_loops(m: int, n: int, k: int, temperature: float, chunk: int, rng: np.random.Generator) -> None:
    train, labels = data(rng, m)
    x, _ = data(rng, n)
    got = neighbour_votes(train, labels, x, C, k=k, temperature=temperature, chunk=chunk)
    np.testing.assert_allclose(got, votes_by_loops(train, labels, x, k, temperature), rtol=1e-5, atol=1e-9)


def test_votes_against_sklearn(rng: np.random.Generator) -> None:
    (train, labels), (x, _) = data(rng, 60), data(rng, 20)
    peer = sklearn.neighbors.KNeighborsClassifier(
        9, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    want = peer.fit(train, labels).predict_proba(x)
    np.testing.assert_allclose(neighbour_votes(train, labels, x, C, k=9), want, rtol=1e-4, atol=1e-8)


def test_ties_share_the_last_places() -> None:
    train = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    labels = np.array([0, 1, 2, 2])
    got = neighbour_votes(train, labels, np.array([[0, 3.0]]), 3, k=2, temperature=1.0)
    np.testing.assert_allclose(got, [[0, 1 / 3, 2 / 3]])  # three share two places
    got = neighbour_votes(train, labels, np.array([[1.0, 0]]), 3, k=2, temperature=1.0)
    e = np.e
    np.testing.assert_allclose(got, [[e / (e + 1), 1 / 3 / (e + 1), 2 / 3 / (e + 1)]])  # one place for three


def test_collapsed_features_vote_as_the_classes_are_frequent(rng: np.random.Generator) -> None:
    labels = rng.integers(0, C, 101)
    got = neighbour_votes(np.full((101, 67), 0.3), labels, np.full((7, 67), 0.3), C, k=20)
    np.testing.assert_allclose(got, np.tile(np.bincount(labels, minlength=C) / 101, (7, 1)))


@pytest.mark.parametrize(
    "probe", [LinearProbe(), LinearProbe(head="ridge"), KNN(k=7)], ids=["logistic", "ridge", "knn"]
)
def test_score(probe: Any, rng: np.random.Generator) -> None:
    (train, train_labels), (x, labels) = data(rng, 120), data(rng, 50)
    got = probe.fit_and_score(train, train_labels, x, labels, C)
    assert set(got.metrics) == set(probe.metrics)
    scores, _ = probe.predict(train, train_labels, x, C)
    guess, name = scores.argmax(1), probe.kind
    assert got.metrics[f"{name}/accuracy"] == pytest.approx(np.mean(guess == labels))
    assert got.metrics[f"{name}/mean_class_accuracy"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, guess)
    )
    assert got.metrics[f"{name}/top5"] == 1 and got.metrics[f"{name}/examples"] == 50
    matrix = sklearn.metrics.confusion_matrix(labels, guess)
    np.testing.assert_array_equal(got.arrays[f"{name}/confusion"], matrix)
    assert 0.6 < got.metrics[f"{name}/accuracy"] < 1
    same = probe.fit_and_score(train, train_labels, x, labels, C)
    assert same.metrics == got.metrics
    order = rng.permutation(50)
    assert probe.fit_and_score(train, train_labels, x[order], labels[order], C).metrics == pytest.approx(got.metrics)


def test_neighbours_do_not_depend_on_the_order_of_training(rng: np.random.Generator) -> None:
    (train, labels), (x, _) = data(rng, 40), data(rng, 30)
    train[20:] = train[:20]  # every feature twice, mostly of another class: ties everywhere
    order = rng.permutation(40)
    a, b = (neighbour_votes(train[o], labels[o], x, C, k=5) for o in (np.arange(40), order))
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("probe", [LinearProbe(), LinearProbe(head="ridge"), KNN()], ids=["logistic", "ridge", "knn"])
def test_perfect_collapsed_and_broken_features(probe: Any) -> None:
    labels = np.resize(np.arange(C), 40).astype(np.int32)
    perfect = np.eye(D, dtype=np.float32)[labels]
    accuracy = f"{probe.kind}/accuracy"
    assert probe.fit_and_score(perfect, labels, perfect, labels, C).metrics[accuracy] == 1
    same = np.ones((40, D), np.float32)
    assert probe.fit_and_score(same, labels, same, labels, C).metrics[accuracy] == 1 / C
    broken = perfect.copy()
    broken[:10] = np.nan
    broken[10:12, 1] = np.inf
    got = probe.fit_and_score(perfect, labels, broken, labels, C).metrics
    assert got[accuracy] == 28 / 40 and got[f"{probe.kind}/nonfinite"] == 12
    with pytest.raises(UserError, match="not finite"):
        probe.fit_and_score(broken, labels, perfect, labels, C)


def run(probe: Any, train: Any, held: Any, params: Any = None, info: Any = INFO) -> Any:
    return score(probe, apply, params or PARAMS, held, info, train=train)


@pytest.mark.parametrize(
    "probe", [LinearProbe(head="ridge", method="features"), KNN(k=3, method="features")], ids=["ridge", "knn"]
)
def test_evaluator_over_batches_and_devices(probe: Any, rng: np.random.Generator) -> None:
    train, held = data(rng, 53), data(rng, 29)
    want = probe.fit_and_score(*train, *held, C).metrics
    assert run(probe, batches(*train, 8), batches(*held, 8)).metrics == pytest.approx(want)
    assert run(probe, batches(*train, 53), batches(*held, 16)).metrics == pytest.approx(want)
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    put = lambda part: (sharding.put(b, mesh) for b in batches(*part, 8))  # noqa: E731
    with jax.set_mesh(mesh):
        assert run(probe, put(train), put(held)).metrics == pytest.approx(want)


def test_which_features_and_one_compilation(rng: np.random.Generator) -> None:
    train, held = data(rng, 30), data(rng, 20)

    def accuracy(params: Any = None, **options: Any) -> float:
        return run(KNN(**options), batches(*train, 8), batches(*held, 8), params).metrics["knn/accuracy"]

    PROGRAMS.clear()
    SHAPES.clear()
    whole, half = accuracy(method="features"), accuracy()
    assert [s[0] for s in SHAPES] == ["features", "embed_image"]  # each traced once
    assert half == KNN().fit_and_score(train[0][:, :2], train[1], held[0][:, :2], held[1], C).metrics["knn/accuracy"]
    assert half != whole and accuracy(method="embed_image") == half and len(SHAPES) == 2


def test_shots(rng: np.random.Generator) -> None:
    train, held = data(rng, 80), data(rng, 40)
    got = run(KNN(shots=3, seed=5, method="features"), batches(*train, 8), batches(*held, 8)).metrics
    chosen = linear.few_shot(train[1], 3, 5)
    assert len(chosen) == 3 * C
    assert got == KNN().fit_and_score(train[0][chosen], train[1][chosen], *held, C).metrics
    again = run(KNN(shots=3, seed=5, method="features"), batches(*train, 80), batches(*held, 8)).metrics
    assert again == got  # whatever the batches
    with pytest.raises(UserError, match="shots=60 is more than class"):
        run(KNN(shots=60), batches(*train, 8), batches(*held, 8))


def test_a_search_cut_short_is_said(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    assert LinearProbe().fit_and_score(*data(rng, 60), *data(rng, 9), C).metrics["linear_probe/unconverged"] == 1


def test_what_cannot_be_evaluated(rng: np.random.Generator) -> None:
    train, held = data(rng, 20), data(rng, 10)
    with pytest.raises(UserError, match="nothing to fit to"):
        score(KNN(), apply, PARAMS, batches(*held, 8), INFO)
    with pytest.raises(UserError, match="nothing to evaluate"):
        run(KNN(), batches(*train, 8), [])
    captions_only = types.SimpleNamespace(num_classes=0, class_names=())
    with pytest.raises(UserError, match="'linear_probe' needs data with classes"):
        run(LinearProbe(), batches(*train, 8), batches(*held, 8), info=captions_only)
    for wrong in ({"k": 0}, {"temperature": 0.0}, {"shots": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=0"):
            KNN(**wrong)
    with pytest.raises(UserError, match="no neighbours"):
        neighbour_votes(np.zeros((0, 2)), np.zeros(0, np.int64), np.ones((1, 2)), 2)


def test_from_a_configuration() -> None:
    parse = lambda text: config.parse(Annotated[Any, config.Choice(EVALUATORS)], text)  # noqa: E731
    assert parse("knn(data='digits', k=5)") == KNN(data="digits", k=5)
    assert parse("linear_probe(head='ridge', shots=10)") == LinearProbe(head="ridge", shots=10)
    assert parse("zero_shot(classes=('zero', 'one'))") == ZeroShot(classes=("zero", "one"))
    assert parse({"name": "zero_shot", "classes": "names.txt"}) == ZeroShot(classes="names.txt")
    assert parse("retrieval(captions=5)") == Retrieval(captions=5)
    with pytest.raises(UserError, match="did you mean 'ridge'"):
        parse("linear_probe(head='rigde')")


@pytest.mark.parametrize("probe", [KNN(folds=4, k=3), LinearProbe(folds=4, head="ridge")])
def test_folds_score_every_example_by_a_probe_of_the_others(probe: Any, rng: np.random.Generator) -> None:
    """Against a loop that fits and scores each fold by itself; no training part is read."""
    assert probe.splits == ("val",) and dataclasses.replace(probe, folds=None).splits == ("train", "val")
    x, y = data(rng, 41)
    x[5] = np.nan
    report = probe.cross_validate(x, y, C, 4)
    counts = np.zeros((4, C), np.int64)
    place, _ = linear.places(y, probe.seed)
    order = np.lexsort((place, y))
    right = 0.0
    for fold in range(4):
        here = np.zeros(len(y), bool)
        here[order[fold::4]] = True
        counts[fold] = np.bincount(y[here], minlength=C)
        rest = ~here & np.isfinite(x).all(1)
        alone = dataclasses.replace(probe, folds=None).fit_and_score(x[rest], y[rest], x[here], y[here], C)
        right += alone.metrics[f"{probe.kind}/accuracy"] * here.sum()
    assert report.metrics[f"{probe.kind}/accuracy"] == pytest.approx(right / 41)
    assert report.metrics[f"{probe.kind}/examples"] == 41 and report.metrics[f"{probe.kind}/nonfinite"] == 1
    assert np.ptp(counts, axis=0).max() <= 1  # every class is spread over the folds
