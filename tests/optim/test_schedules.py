from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config
from vit_jax.config import Duration
from vit_jax.optim.schedules import SCHEDULES, Constant, Cosine, Linear, Rsqrt, make
from vit_jax.types import UserError

PEAK, WARMUP, TOTAL = 3e-3, 7, 40
N = TOTAL - WARMUP


def steps_of(duration: Duration) -> int:
    return duration.steps(batch_size=10, num_examples=100, total=TOTAL)


def build(schedule, warmup=WARMUP, total=TOTAL):
    return make(schedule, peak=PEAK, warmup=warmup, total=total, steps_of=steps_of)


def rsqrt(t):
    share = math.sqrt(20 / (20 + t))
    left = min((N - t) / 8, 1)
    return left * share + (1 - left) * 0.05


CLOSED = {
    "cosine": (Cosine(0.1), lambda t: 0.1 + 0.9 * math.cos(math.pi * t / N / 2) ** 2),
    "linear": (Linear(0.01), lambda t: 1 - 0.99 * t / N),
    "constant": (Constant(Duration(10), 0.2), lambda t: 1 if t <= N - 10 else 1 - 0.8 * (t - N + 10) / 10),
    "rsqrt": (Rsqrt(Duration(2, "epochs"), Duration(20, "percent"), 0.05), rsqrt),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_its_closed_form_at_every_step_traced_or_not(name):
    schedule, share = CLOSED[name]
    lr = build(schedule)
    expected = [PEAK * (s / WARMUP if s < WARMUP else share(min(s - WARMUP, N))) for s in range(TOTAL + 5)]
    np.testing.assert_allclose([lr(s) for s in range(TOTAL + 5)], expected, rtol=3e-6)
    traced = jax.jit(jax.vmap(lr))(jnp.arange(TOTAL + 5))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, expected, rtol=3e-6)


@pytest.mark.parametrize(("schedule", "end"), [(Cosine(), 0), (Linear(), 0), (Linear(1), 1), (Constant(), 1)])
def test_is_exact_at_zero_at_the_end_of_the_warmup_and_at_the_total(schedule, end):
    lr = build(schedule)
    assert [float(lr(s)) for s in (0, WARMUP, TOTAL)] == [0, np.float32(PEAK), np.float32(PEAK * end)]
    assert float(build(schedule, warmup=0)(0)) == np.float32(PEAK)


@pytest.mark.parametrize("name", SCHEDULES)
def test_is_never_negative_and_never_above_the_peak(name):
    lr = jax.vmap(build(SCHEDULES[name]()))(jnp.arange(3 * TOTAL))
    assert float(lr.min()) >= 0
    assert float(lr.max()) == np.float32(PEAK)


def test_rsqrt_without_cooldown_never_reaches_zero():
    assert float(build(Rsqrt(Duration(33), Duration(0)))(TOTAL)) == pytest.approx(PEAK / math.sqrt(2), rel=1e-6)


def test_warmup_may_take_the_whole_training():
    assert float(build(Cosine(), warmup=TOTAL)(TOTAL - 1)) == pytest.approx(PEAK * (TOTAL - 1) / TOTAL)


def test_a_mistake_is_a_sentence():
    with pytest.raises(UserError, match=r"of 41 steps is longer than the training of 40; shorten it, optim\.warmup=5%"):
        build(Cosine(), warmup=41)
    with pytest.raises(UserError, match="cools down for 34 steps but only 33"):
        build(Constant(Duration(34)))
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"from 0 to 1"):
            Linear(bad)
    with pytest.raises(UserError, match="timescale"):
        Rsqrt(Duration(0))


def test_is_selected_by_name():
    chosen = config.parse(Annotated[Any, config.Choice(SCHEDULES)], "rsqrt(timescale='3 epochs', end=0.5)")
    assert chosen == Rsqrt(Duration(3, "epochs"), end=0.5)
