"""Batches are counted after the first, by a clock of ours."""

import itertools

import pytest

from vit_jax.bench import input as bench_input


def test_images_and_seconds(monkeypatch):
    for clock, tick in (("perf_counter", 2), ("process_time", 3)):
        monkeypatch.setattr(bench_input.time, clock, itertools.count(0, tick).__next__)
    drawn = []
    batches = lambda source, **options: iter_and_close(drawn, source, options)  # noqa: E731
    monkeypatch.setattr(bench_input, "train_batches", batches)
    found = bench_input.measure("fake:64x16x4", batch=8, canvas=16, rounds=3)
    assert found == {"data": "fake:64x16x4", "images/s": 24 / 2, "CPU seconds per 1000 images": pytest.approx(125)}
    assert drawn == [64, {"batch_size": 8, "seed": 0, "canvas": 16}, 0, 1, 2, 3, "closed"]


def iter_and_close(drawn, source, options):
    drawn += [len(source), options]
    try:
        for i in itertools.count():
            drawn.append(i)
            yield i
    finally:
        drawn.append("closed")
