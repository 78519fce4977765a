"""The loader and bare decoding are timed in turn, over the same examples."""

import itertools

import numpy as np
import pytest

from tests.data.helpers import encode, random_image
from vit_jax.bench import input as bench_input
from vit_jax.data import resizing
from vit_jax.data.loader import train_batches
from vit_jax.data.sources import open_source

RATIOS = [f"times bare decoding ({k})" for k in ("median", "10th percentile", "90th percentile")]


@pytest.fixture
def photographs(tmp_path, rng):
    for i in range(5):
        (tmp_path / "a" / f"{i}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.jpg").write_bytes(encode(random_image(rng, 190 + i, 210)))
    return f"folder:{tmp_path}"


def test_photographs(photographs):
    found = bench_input.measure(photographs, batch=2, canvas=32, rounds=2, workers=1)
    assert found["processor"].endswith(", 1 threads") and found["resized by"] == resizing.note()
    assert all(0 < found[name] < 100 for name in RATIOS)
    stages = [found[f"{name} ms an image"] for name in bench_input.STAGES]
    assert min(stages) > 0 and sum(stages) < 1000
    size = np.mean([len(open_source(photographs, holdout=0)[i]["image"]) for i in range(5)])
    assert found["MB/s of files"] == pytest.approx(found["loader images/s"] * size / 1e6, rel=0.1)


def test_by_a_clock_of_ours(monkeypatch):
    """A side takes two readings, two seconds apart for one and three for the other."""
    for clock, tick in (("perf_counter", 2), ("process_time", 3)):
        monkeypatch.setattr(bench_input.time, clock, itertools.count(0, tick).__next__)
    sides = []
    monkeypatch.setattr(bench_input, "_load", lambda source, batch, canvas, first, threads: sides.append(first))
    monkeypatch.setattr(bench_input, "_bare", lambda source, batch, first, threads: sides.append(-first))
    found = bench_input.measure("fake:64x16x4", batch=8, canvas=16, rounds=3)
    assert found["loader images/s"] == found["bare decoding images/s"] == 32 / 2 and found["data"] == "fake:64x16x4"
    assert found["loader CPU s per 1000 images"] == pytest.approx(1000 * 3 / 32)
    assert found["MB/s of files"] == pytest.approx(16 * 16 * 16 * 3 / 1e6)
    assert sides == [x for i in range(4) for x in (4 * i, -4 * i)]


def test_both_sides_take_the_same_examples():
    source = open_source("fake:37x8x4", holdout=0)
    rows = bench_input._rows(source, 8, 4, 4).tolist()
    batches = train_batches(source, batch_size=8, seed=0, canvas=8, start_step=4, steps=8)
    assert rows == [int(i) for batch in batches for i in batch["index"]]
    taken = []
    source.__class__ = type("Taken", (source.__class__,), {"__getitem__": _taking(source, taken)})
    bench_input._bare(source, 8, 4, 2)
    assert sorted(taken) == sorted(rows)


def _taking(source, taken):
    get = source.__class__.__getitem__
    return lambda self, i: taken.append(i) or get(self, i)
