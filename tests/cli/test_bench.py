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


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_loss(name, capsys):
    size = ["--batch", "300", "--dim", "8", "--chunk", "16", "--rounds", "2"]
    assert main(["bench", "loss", "--loss", name, *size, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == f"{name}, 300 pairs of width 8, chunks of 16"
    low, median, high = (
        found[f"chunked takes times as long ({k})"] for k in ("10th percentile", "median", "90th percentile")
    )
    assert 0 < low <= median <= high
    assert found["times less memory"] == found["dense temporary MB"] / found["chunked temporary MB"] > 3


def test_loss_alone(capsys):
    assert main(["bench", "loss", "--batch", "20", "--dim", "4", "--rounds", "1", "--alone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["loss", "chunked", "chunked"] and float(lines[1].split()[-1]) > 0
    assert main(["bench", "loss", "--loss", "sigmoyd"]) == 2
    assert "unknown loss 'sigmoyd'; did you mean 'sigmoid'" in capsys.readouterr().err
