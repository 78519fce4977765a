"""Shares of a run's time add up, over several lives."""

import time

import pytest

from vit_jax.train.goodput import KINDS, Goodput


def test_what_is_spent_on_nothing_else_is_spent_in_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 5000 + now[0])
    one = Goodput(100.0)
    for kind, seconds in (("start", 2), ("compile", 3), ("input", 1), ("input", 1), ("checkpoint", 1)):
        with one.spent(kind):
            now[0] += seconds
    now[0] += 12
    assert one.seconds() == {
        "step": 12, "start": 2, "compile": 3, "input": 2, "evaluation": 0, "checkpoint": 1, "lost": 0,
    }  # fmt: skip
    assert str(one) == "20 s: step 60%, start 10%, compile 15%, input 10%, checkpoint 5%"
    kept = one.meta()
    now[0] += 4  # work that is lost, and a machine that is away
    second = Goodput(now[0])
    now[0] += 1
    with second.spent("start"):
        now[0] += 5
    second.resume(kept)
    assert second.seconds() == {
        "step": 13, "start": 7, "compile": 3, "input": 2, "evaluation": 0, "checkpoint": 1, "lost": 4,
    }  # fmt: skip
    shares = second.row()
    assert set(shares) == {f"speed/goodput/{kind}" for kind in KINDS} and sum(shares.values()) == pytest.approx(1)


def test_a_clock_that_was_set_back_loses_nothing():
    clock = Goodput(time.monotonic())
    clock.resume({"seconds": {"step": 5.0}, "until": time.time() + 1000})
    assert clock.seconds()["lost"] == 0 and clock.seconds()["step"] >= 5
    clock.resume({})
