"""ECE by hand and by scikit-learn; temperatures against a general-purpose minimiser."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics

from vit_jax.evals import calibration
from vit_jax.evals.calibration import fit_temperature, reliability
from vit_jax.losses import CROSS_ENTROPIES
from vit_jax.types import UserError


def ece_by_loops(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, written out."""
    total = 0.0
    for m in range(bins):
        members = [i for i, c in enumerate(confidence) if m / bins < c <= (m + 1) / bins]
        if members:
            acc, conf = np.mean([correct[i] for i in members]), np.mean([confidence[i] for i in members])
            total += len(members) / len(confidence) * abs(acc - conf)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece(bins: int, rng: np.random.Generator) -> None:
    confidence = rng.beta(4, 2, 501)
    correct = rng.random(501) < confidence**2
    diagram = reliability(confidence, correct, bins)
    np.testing.assert_allclose(diagram.ece(), ece_by_loops(confidence, correct, bins), rtol=1e-12)
    assert diagram.examples.sum() == 501 and diagram.edges.shape == (bins + 1,)


def test_bins_are_open_below_and_closed_above() -> None:
    diagram = reliability(np.array([0.0, 0.25, 0.2500001, 0.5, 1.0]), np.array([0, 1, 0, 1, 1], bool), 4)
    np.testing.assert_array_equal(diagram.examples, [2, 2, 0, 1])
    np.testing.assert_array_equal(diagram.accuracy, [0.5, 0.5, np.nan, 1.0])
    np.testing.assert_allclose(diagram.confidence, [0.125, 0.37500005, np.nan, 1.0])


def make(rng: np.random.Generator, output_activation: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels drawn from them, then the logits scaled: the best temperature is near ``scale``."""
    logits = rng.normal(0, 2, (2000, 7))
    p = scipy.special.softmax(logits, 1)
    labels = np.array([rng.choice(7, p=q) for q in p])
    return (logits * scale - (2.0 if output_activation == "sigmoid" else 0.0)).astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_temperature_minimises_the_likelihood(output_activation: str, scale: float, rng: np.random.Generator) -> None:
    logits, labels = make(rng, output_activation, scale)
    target = np.eye(7)[labels]

    def nll(log_t: float) -> float:
        z = logits.astype(np.float64) / np.exp(log_t)
        if output_activation == "softmax":
            return sklearn.metrics.log_loss(labels, scipy.special.softmax(z, 1))
        return -np.mean(np.sum(target * scipy.special.log_expit(z) + (1 - target) * scipy.special.log_expit(-z), 1))

    want = scipy.optimize.minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    got = fit_temperature(logits, labels, output_activation)
    assert not got.at_bound
    np.testing.assert_allclose(got.value, np.exp(want.x), rtol=1e-5)
    np.testing.assert_allclose([got.nll_before, got.nll_after], [nll(0.0), want.fun], rtol=1e-9)
    if output_activation == "softmax":
        np.testing.assert_allclose(got.value, scale, rtol=0.1)
    np.testing.assert_allclose(got.nll_before, np.mean(CROSS_ENTROPIES[output_activation](logits, labels)), rtol=1e-5)


def test_temperature_calibrates_other_data(rng: np.random.Generator) -> None:
    logits, labels = make(rng, "softmax", 3.0)
    t = fit_temperature(logits[:1000], labels[:1000]).value

    def ece(z: np.ndarray) -> float:
        p = np.asarray(jax.nn.softmax(z))
        return reliability(p.max(1), p.argmax(1) == labels[1000:]).ece()

    assert ece(logits[1000:] / np.float32(t)) < 0.05 < 0.15 < ece(logits[1000:])


def test_blocks_of_rows_do_not_matter(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = make(rng, "softmax", 2.0)
    whole = fit_temperature(logits, labels).value
    monkeypatch.setattr(calibration, "_CHUNK", 123)
    np.testing.assert_allclose(fit_temperature(logits, labels).value, whole, rtol=1e-9)


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_no_finite_optimum_is_said(output_activation: str, rng: np.random.Generator) -> None:
    labels = rng.integers(0, 4, 50)
    right = np.eye(4)[labels] * 6.0 - 3.0 + rng.normal(0, 0.1, (50, 4))
    best = fit_temperature(right, labels, output_activation)
    assert best.at_bound and best.value == calibration.T_MIN and best.nll_after <= best.nll_before
    worst = fit_temperature(-right, labels, output_activation)
    assert worst.at_bound and np.isclose(worst.value, calibration.T_MAX) and worst.nll_after <= worst.nll_before
    assert fit_temperature(np.zeros((5, 4)), labels[:5], output_activation).at_bound


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.array([[0.0, np.nan]])])
def test_unusable_logits(logits: np.ndarray) -> None:
    with pytest.raises(UserError, match="cannot fit a temperature"):
        fit_temperature(logits, np.zeros(len(logits), int))
