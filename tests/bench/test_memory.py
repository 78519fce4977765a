"""Temporaries and time by what is computed again."""

import jax
import pytest

from vit_jax import models
from vit_jax.bench import memory
from vit_jax.bench.memory import compare
from vit_jax.config import Variant

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


def test_a_row_for_each_policy(monkeypatch):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    monkeypatch.setattr(memory, "REMAT", ("full",))
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        none, full = compare("tiny", "bfloat16", 2, 8, scan=False, rounds=2)
    assert (none["remat"], full["remat"], full["saved"]) == ("none", "full", "float")
    assert none["temporaries MB"] > 0 and none["share of none's"] == none["share of none's with state"] == 1
    assert full["with state MB"] - full["temporaries MB"] == pytest.approx(
        none["with state MB"] - none["temporaries MB"]
    )
    assert full["share of none's"] == full["temporaries MB"] / none["temporaries MB"]
    assert none["times none's seconds (median)"] == 1 and full["seconds"] > 0


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("scan", [False, True])
def test_computing_again_saves_memory(monkeypatch, scan):
    monkeypatch.setitem(models.NAMES, "few", Variant(models.ViT, {"patch": 16, "width": 192, "depth": 4, "heads": 3}))
    with jax.numpy_dtype_promotion("standard"):
        rows = {row["remat"]: row for row in compare("few", "bfloat16", 32, 224, scan=scan, rounds=0)}
    assert rows["full"]["share of none's"] < 0.5 and "seconds" not in rows["full"]


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("scan", [False, True])
def test_eight_bits_save_memory(monkeypatch, scan):
    """Of float32 a quarter is left of what is kept; what a block has at work stays."""
    monkeypatch.setitem(models.NAMES, "few", Variant(models.ViT, {"patch": 16, "width": 192, "depth": 6, "heads": 3}))
    monkeypatch.setattr(memory, "REMAT", ("dots_no_batch",))
    with jax.numpy_dtype_promotion("standard"):
        rows = compare("few", "float32", 32, 224, scan=scan, rounds=0, saved=("float", "int8"))
    share = {(row["remat"], row["saved"]): row["share of none's"] for row in rows}
    assert share["none", "int8"] < 0.45
    assert share["dots_no_batch", "int8"] < 0.6 * share["dots_no_batch", "float"]
