"""Speed: images of a batch over the median of its passes, whatever else takes time."""

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.contexts import score
from vit_jax.evals import Speed, speed
from vit_jax.types import UserError

INFO: Any = types.SimpleNamespace(num_classes=2, class_names=("a", "b"), encoder=None)


def test_the_median_of_the_passes_counts(monkeypatch):
    now, calls = [0.0], []

    def apply(params, image, *, train, method):
        calls.append((image.shape, train, method))
        return image.mean(axis=(1, 2)) @ params

    def clock():  # passes of 0.2, 0.4 and 30 seconds
        now.append(now[-1] + (0.2, 1.0, 0.4, 1.0, 30.0)[(len(now) - 2) % 5] if len(now) > 1 else 0.5)
        return now[-1]

    monkeypatch.setattr(speed.time, "perf_counter", clock)
    batches = [{"image": np.ones((6, 4, 4, 3), np.float32), "mask": np.arange(6) < 5}] * 2
    report = score(Speed(passes=3), apply, jnp.ones((3, 2)), batches, INFO)
    assert report.metrics == {"images_per_second": pytest.approx(6 / 0.4)}
    assert calls == [((6, 4, 4, 3), False, None)]  # traced once, timed three times


def test_no_data():
    with pytest.raises(UserError, match="'speed' computes the first batch, and there is none"):
        score(Speed(), None, None, [], INFO)
