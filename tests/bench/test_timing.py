"""Timing: the order of calls, what counts, and the ratios."""

import itertools

import numpy as np
import pytest

from vit_jax.bench import timing
from vit_jax.bench.timing import Timing


def test_candidates_alternate_and_warm_up(monkeypatch):
    """A counting clock: a call of "slow" takes 3 ticks, one of "fast" 1; the first two calls do not count."""
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def candidate(name, ticks):
        first = itertools.count()

        def run():
            calls.append(name)
            now[0] += 100 if next(first) < 2 else ticks
            return np.zeros(1)

        return run

    found = timing.alternate({"slow": candidate("slow", 3), "fast": candidate("fast", 1)}, rounds=3, calls=2)
    assert calls == ["slow"] * 2 + ["fast"] * 2 + (["slow"] * 2 + ["fast"] * 2) * 3
    np.testing.assert_array_equal(found["slow"].seconds, [3, 3, 3])
    assert found["fast"].over(found["slow"]) == (3, 3, 3)


def test_ratios_are_of_paired_rounds(rng):
    a, b = rng.uniform(1, 2, 11), rng.uniform(1, 2, 11)
    ratios = sorted(b / a)
    assert Timing(a).median == sorted(a)[5]
    assert Timing(a).over(Timing(b)) == pytest.approx((ratios[5], ratios[1], ratios[9]))
    want = {"faster (median)": ratios[5], "faster (10th percentile)": ratios[1], "faster (90th percentile)": ratios[9]}
    assert Timing(a).compared("faster", Timing(b)) == pytest.approx(want)


CPU = "x : 1\nmodel name\t: A B\n"


@pytest.mark.parametrize(
    "text, name, units",
    [
        (CPU + CPU, "A B", ""),
        ("", "Z", ""),
        (CPU + "flags\t\t: fpu avx512_bf16\n", "A B", ", AVX-512 for bfloat16"),
        (CPU + "flags\t\t: amx_bf16 avx512_bf16 amx_int8\n", "A B", ", AMX"),
        (CPU + "flags\t\t: fpu avx2\n", "A B", ", no products in bfloat16"),
    ],
)
def test_the_processor_is_named(monkeypatch, text, name, units):
    monkeypatch.setattr(timing, "_read", lambda path: text)
    monkeypatch.setattr(timing.platform, "processor", lambda: "Z")
    found = timing.processor()
    assert found.startswith(f"{name}, ") and found.endswith(f" cores{units}")
