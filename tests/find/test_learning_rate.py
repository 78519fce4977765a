"""A range test against a quadratic."""

import numpy as np
import pytest

from vit_jax.find import learning_rate
from vit_jax.optim import schedules
from vit_jax.types import UserError


def descent(curvature, steps=100, least=1e-7, most=10.0):
    """Gradient descent on curvature / 2 * w ** 2 at a rising rate: below 2 / curvature the loss falls."""
    rate = schedules.make(learning_rate.Exponential(least / most), peak=most, warmup=0, total=steps, steps_of=None)
    rates = [float(rate(i)) for i in range(steps)]

    def step(w, i):
        return w * (1 - rates[i] * curvature), {"lr": rates[i], "loss": curvature / 2 * w**2}

    return learning_rate.sweep(step, 1.0, range(steps))


@pytest.mark.parametrize("curvature", [0.7, 20.0, 3000.0])
def test_the_rate_of_a_quadratic(curvature):
    """Least at the limit of stability, 2 / h; what is suggested is stable and within ten times the best rate, 1 / h."""
    found = descent(curvature, most=100.0)
    factor = found.rates[1] / found.rates[0]
    assert found.rates[found.losses.argmin()] == pytest.approx(2 / curvature, rel=factor - 1)
    assert found.diverged and len(found.rates) < 100 and found.losses[-1] > found.losses[0]
    assert abs(np.log(found.least * curvature / 2)) < 4 * np.log(factor)
    assert 0.1 / curvature < found.suggestion < 1 / curvature
    assert found.steepest < 2 / curvature and found.failed == ""


def test_rates_rise_by_one_factor_and_end_below_the_last():
    found = descent(1e-9, steps=11, least=1e-4, most=1.0)
    np.testing.assert_allclose(found.rates, 10 ** (-4 + 4 * np.arange(11) / 11), rtol=1e-5)


def test_a_sweep_that_says_nothing():
    assert "raise --most" in descent(1e-9).failed and descent(1e-9).suggestion is None
    flat = learning_rate.RateSweep(np.geomspace(1e-6, 1, 30), np.linspace(1, 2, 30), False)
    assert "lower --least" in flat.failed and flat.suggestion is None


def test_a_loss_that_is_no_number_ends_the_sweep():
    losses = [3.0] * 8 + [2.0, float("nan"), 1.0]
    found = learning_rate.sweep(lambda s, i: (s, {"lr": 10.0**i, "loss": losses[i]}), None, range(11))
    assert found.diverged and found.losses.tolist() == losses[:9]
    with pytest.raises(UserError, match="the loss is inf after 1 steps"):
        learning_rate.sweep(lambda s, i: (s, {"lr": 1.0, "loss": (1.0, np.inf)[i]}), None, range(2))


def test_noise_does_not_end_it_and_a_peak_does_not_hide_the_least(rng):
    rates = np.geomspace(1e-6, 1, 90)
    losses = 2.3 - 1.2 * np.exp(-0.5 * (np.log(rates / 1e-2) / 1.5) ** 2) + rng.normal(0, 0.05, 90)
    found = learning_rate.sweep(lambda s, i: (s, {"lr": rates[i], "loss": losses[i]}), None, range(90))
    assert not found.diverged and abs(np.log10(found.least / 1e-2)) < 0.4
    peak = learning_rate.RateSweep(rates, np.where(rates > 0.5, 1e9, losses), True)
    assert peak.least == pytest.approx(found.least)
