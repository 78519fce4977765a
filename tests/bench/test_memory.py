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
    assert (none["remat"], full["remat"]) == ("none", "full")
    assert none["temporaries MB"] > 0 and none["share of none's"] == 1
    assert full["share of none's"] == full["temporaries MB"] / none["temporaries MB"]
    assert none["times none's seconds (median)"] == 1 and full["seconds"] > 0


@pytest.mark.slow  # half a minute
def test_computing_again_saves_memory():
    rows = {row["remat"]: row for row in compare("vit_ti16", "float32", 8, 224, scan=True, rounds=0)}
    assert rows["full"]["share of none's"] < 0.7 and "seconds" not in rows["full"]
