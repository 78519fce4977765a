"""Models are compared within one run."""

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.bench import models as bench
from vit_jax.bench.models import compare
from vit_jax.bench.timing import Timing
from vit_jax.config import Variant
from vit_jax.layers.linear.low_rank import LowRank

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    return "tiny", "bfloat16", 2, 8


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_models_are_compared(tiny, kind):
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        found = compare(kind, *tiny, linear=None, rounds=3)
    assert found["model"] == "tiny bfloat16, 2 images of 8 px"
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert all(found[f"{label} images/s"] > 0 for label in ("vit_jax", "plain flax bfloat16", "plain flax float32"))
    assert 0 < found["share of one large product's speed"] < 1


@pytest.mark.parametrize("seconds", [[1, 4, 2], [1, 2, 4]])
def test_the_rival_is_plain_flax_in_its_faster_type(tiny, monkeypatch, seconds):
    def alternate(candidates, rounds):
        return {name: Timing(np.full(rounds, t)) for name, t in zip(candidates, seconds, strict=True)}

    monkeypatch.setattr(bench, "alternate", alternate)
    with jax.numpy_dtype_promotion("standard"):
        assert compare("forward", *tiny, linear=None, rounds=3)["times faster (median)"] == 2


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_linear_maps_are_compared_with_dense_ones(tiny, kind):
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        found = compare(kind, *tiny, linear=("low_rank(2)", LowRank(2)), rounds=3)
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert found["low_rank(2) images/s"] > 0 and found["dense images/s"] > 0
    assert 0.3 < found["share of the dense model's parameters"] < 0.9
