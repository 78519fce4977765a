"""Linear classifiers against scikit-learn and the normal equations."""

import numpy as np
import pytest
import scipy.special
import sklearn.linear_model

from vit_jax.evals import linear
from vit_jax.evals.linear import few_shot, fit, hold_out, logistic, ridge
from vit_jax.types import UserError


def data(rng: np.random.Generator, n: int, d: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, c, n)
    return rng.normal(size=(n, d)) + 1.2 * rng.normal(size=(c, d))[labels] + 3, labels


@pytest.mark.parametrize(("c", "l2"), [(4, 0.01), (2, 0.1), (3, 1.0)])
def test_logistic_against_sklearn(c: int, l2: float, rng: np.random.Generator) -> None:
    x, y = data(rng, 90, 5, c)
    (got,) = logistic(x, y, c, (l2,))
    assert got.converged
    p = scipy.special.softmax(got(x), 1)
    slope = p - np.eye(c)[y]
    np.testing.assert_allclose(x.T @ slope / 90 + l2 * got.kernel, 0, atol=5e-6)  # where the gradient vanishes
    np.testing.assert_allclose(slope.mean(0), 0, atol=5e-6)
    if c > 2:  # scikit-learn has one vector for two classes, which is another penalty
        peer = sklearn.linear_model.LogisticRegression(C=1 / (90 * l2), tol=1e-9, max_iter=10_000).fit(x, y)
        np.testing.assert_allclose(got.kernel, peer.coef_.T, atol=2e-4)
        np.testing.assert_allclose(p, peer.predict_proba(x), atol=2e-4)


def test_ridge_against_the_normal_equations(rng: np.random.Generator) -> None:
    x, y = data(rng, 40, 7, 3)
    for l2, got in zip((10.0, 0.1, 1e-4), ridge(x, y, 3, (10.0, 0.1, 1e-4)), strict=True):
        peer = sklearn.linear_model.Ridge(alpha=40 * l2).fit(x, np.eye(3)[y])
        np.testing.assert_allclose(got.kernel, peer.coef_.T, rtol=1e-8)
        np.testing.assert_allclose(got.bias, peer.intercept_, rtol=1e-8)


@pytest.mark.parametrize("path", linear.HEADS.values(), ids=linear.HEADS)
def test_more_features_than_examples_and_a_class_without_any(path: linear.Path, rng: np.random.Generator) -> None:
    x, y = data(rng, 12, 30, 3)
    found = fit(x, y, 5, path)
    logits = found.classifier(x)
    assert logits.shape == (12, 5) and np.isfinite(logits).all() and set(logits.argmax(1)) <= set(y.tolist())
    np.testing.assert_array_equal(logits.argmax(1), y)


@pytest.mark.parametrize("path", linear.HEADS.values(), ids=linear.HEADS)
def test_moving_turning_and_scaling_features_changes_nothing(path: linear.Path, rng: np.random.Generator) -> None:
    x, y = data(rng, 80, 6, 3)
    new = rng.normal(size=(20, 6)) + 3
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = fit(x, y, 3, path), fit(1e4 * x @ turn + 50, y, 3, path)
    assert a.l2 == b.l2
    want = scipy.special.softmax(a.classifier(new), 1)
    np.testing.assert_allclose(scipy.special.softmax(b.classifier(1e4 * new @ turn + 50), 1), want, atol=1e-3)


@pytest.mark.parametrize("path", linear.HEADS.values(), ids=linear.HEADS)
def test_the_penalty_is_what_does_best_on_held_out_examples(path: linear.Path, rng: np.random.Generator) -> None:
    x, y = data(rng, 150, 60, 4)
    x += 4 * rng.normal(size=x.shape)  # noise: weak penalties overfit
    y[:60] = 0  # and many of one class: strong ones see no other
    found = fit(x, y, 4, path, seed=3)
    held, right = hold_out(y, 3), []
    mean = x.mean(0)
    scaled = (x - mean) / np.sqrt(np.mean((x - mean) ** 2))
    for l2 in linear.L2:
        (one,) = path(scaled[~held], y[~held], 4, (l2,))
        right.append(np.mean(one(scaled[held]).argmax(1) == y[held]))
    assert found.l2 == linear.L2[int(np.argmax(right))] and 0 < np.argmax(right) < len(right) - 1
    (one,) = path(scaled, y, 4, (found.l2,))  # then all examples are fitted
    np.testing.assert_allclose(found.classifier(x), one(scaled), atol=2e-3)


def test_one_example_a_class_takes_the_middle_penalty(rng: np.random.Generator) -> None:
    found = fit(rng.normal(size=(4, 3)), np.arange(4), 4)
    assert found.l2 == linear.L2[len(linear.L2) // 2]


def test_collapsed_features_predict_the_most_frequent_class() -> None:
    y = np.array([0, 1, 1, 2, 1, 0])
    for path in linear.HEADS.values():
        assert (fit(np.full((6, 3), 2.5), y, 3, path).classifier(np.full((2, 3), 2.5)).argmax(1) == 1).all()


def test_a_search_cut_short_is_said(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    assert not fit(*data(rng, 60, 9, 4), 4, l2=(1e-6,)).classifier.converged


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(UserError, match="fitted to 0 examples"):
        fit(np.zeros((0, 3)), np.zeros(0, np.int64), 2)
    with pytest.raises(UserError, match="3 examples, 1 of them not finite"):
        fit(np.array([[1.0], [np.inf], [2.0]]), np.array([0, 1, 1]), 2)


def test_hold_out_is_a_share_of_each_class(rng: np.random.Generator) -> None:
    y = rng.permutation(np.repeat([0, 1, 2, 5], [50, 1, 2, 13]))
    held = hold_out(y, 0)
    assert np.bincount(y[held], minlength=6).tolist() == [10, 0, 1, 0, 0, 3]
    np.testing.assert_array_equal(hold_out(y, 0), held)
    assert (hold_out(y, 1) != held).any()


def test_few_shot(rng: np.random.Generator) -> None:
    y = rng.permutation(np.repeat([0, 1, 2], [9, 4, 30]))
    two, four = few_shot(y, 2, 0), few_shot(y, 4, 0)
    assert np.bincount(y[two]).tolist() == [2, 2, 2] and np.bincount(y[four]).tolist() == [4, 4, 4]
    assert set(two) < set(four) and (np.diff(four) > 0).all()
    assert few_shot(y, 2, 1).tolist() != two.tolist()
    chosen = np.concatenate([few_shot(y, 1, seed)[:1] for seed in range(40)])
    assert len(set(chosen)) > 10  # not always the first ones
    with pytest.raises(UserError, match="shots=5 is more than class 1 has; it has 4"):
        few_shot(y, 5, 0)
