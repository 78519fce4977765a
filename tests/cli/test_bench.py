"""``bench``: ratios within one run."""

import functools
import json

import jax
import pytest

from vit_jax import models
from vit_jax.cli import main


@pytest.fixture
def small(monkeypatch):
    tiny = functools.partial(models.ViT, patch=4, width=16, depth=1, heads=2, mlp_dim=32)
    monkeypatch.setattr(models, "create", lambda name, **kw: tiny(num_classes=3, **kw))
    return ["--model", "tiny", "--size", "8", "--batch", "2", "--rounds", "3"]


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_models_are_compared(small, kind, capsys):
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        assert main(["bench", kind, *small, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tiny bfloat16, 2 images of 8 px"
    low, median, high = (found[f"times faster ({k})"] for k in ("10th percentile", "median", "90th percentile"))
    assert 0 < low <= median <= high
    assert found["vit_jax images/s"] > 0 and 0 < found["share of one large product's speed"] < 1


def test_input(capsys, tmp_path):
    assert main(["bench", "input", "--data", "fake:64x16x4", "--batch", "8", "--canvas", "16", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["data", "fake:64x16x4"] and float(lines[1].split()[-1]) > 0
