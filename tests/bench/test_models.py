"""Models are compared within one run."""

import os

import jax
import numpy as np
import pytest

from tests.bench.here import Here
from vit_jax import models
from vit_jax.bench import sides
from vit_jax.bench.models import compare
from vit_jax.bench.timing import Timing
from vit_jax.config import Variant
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.types import UserError

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    monkeypatch.setattr(sides, "Side", Here)
    return "tiny", "bfloat16", 2, 8


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["forward", "train"])
def test_models_are_compared(tiny, kind):
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        found = compare(kind, *tiny, rounds=3)
    assert found["model"] == "tiny bfloat16, 2 images of 8 px"
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    for label in ("vit_jax", "plain flax bfloat16", "plain flax float32"):
        assert found[f"{label} images/s"] > 0 and found[f"{label} core seconds/step"] > 0
    assert 0 < found["share of one large product's speed"] < 1


@pytest.mark.first(1)
@pytest.mark.parametrize("seconds", [[1, 4, 2], [1, 2, 4]])
def test_the_rival_is_plain_flax_in_its_faster_type(tiny, monkeypatch, seconds):
    def alternate(ready, rounds):
        return {name: Timing(*np.full((2, rounds), t)) for name, t in zip(ready, seconds, strict=True)}

    monkeypatch.setattr(sides, "alternate", alternate)
    with jax.numpy_dtype_promotion("standard"):
        assert compare("forward", *tiny, rounds=3)["times faster (median)"] == 2


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["forward", "train"])
def test_linear_maps_are_compared_with_dense_ones(tiny, kind):
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        found = compare(kind, *tiny, linear=("low_rank(2)", LowRank(2)), rounds=3)
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert found["low_rank(2) images/s"] > 0 and found["dense images/s"] > 0
    assert 0.3 < found["share of the dense model's parameters"] < 0.9


def test_another_model_is_no_rival(tiny, monkeypatch):
    class Larger(Here):
        def ask(self, word):
            return {**super().ask(word), "parameters": id(self)}

    monkeypatch.setattr(sides, "Side", Larger)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(UserError, match=r"'tiny' has .* parameters, what"):
        compare("forward", *tiny, rounds=1)


SITE = """
import importlib.abc, sys

class WithTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "timm":
            sys.meta_path.remove(self)
            from tests import peers
            peers.imported("torchvision")

sys.meta_path.insert(0, WithTorchvision())
"""
"""What other processes do before they import timm, see :func:`tests.peers.imported`."""


@pytest.fixture
def one_core():
    """For what the test starts: two threads of PyTorch wait for each other in vain on a busy machine."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_timm_in_a_process_of_its_own(timm, one_core, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    found = compare("train", "tiny", "bfloat16", 2, 8, rounds=2, against="timm")
    assert found["timm"].startswith(f"timm {timm.__version__}, torch") and found["threads"] == "1"
    assert found["vit_jax images/s"] > 0 and found["timm images/s"] > 0 and found["times faster (median)"] > 0
