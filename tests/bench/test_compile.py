"""Stages of compiling, at several depths."""

import jax
import pytest

from vit_jax import models
from vit_jax.bench import compile
from vit_jax.bench.compile import compare, measure
from vit_jax.models.describe import build, describe

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


def test_every_stage_takes_time():
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        found = measure(describe(models.create("vit", **SIZES, dtype="bfloat16")), 2, 8)
    assert list(found) == ["trace", "lower", "compile", "work"] and all(value > 0 for value in found.values())


def test_a_row_for_every_depth_and_cache(monkeypatch):
    asked = []

    def fresh(request):
        model = build(request["model"])
        asked.append((model.scan, model.depth, request["cache"]))
        warm = sum(cache == request["cache"] for *_, cache in asked) > 1
        seconds = 1.0 if model.scan else float(model.depth)
        return {"trace": seconds, "lower": 1.0, "compile": 0.0 if warm else len(asked), "work": 9.0}

    monkeypatch.setattr(compile, "_fresh", fresh)
    rows = compare("vit_ti16", "float32", 2, 16, layers=[2, 4], rounds=2)
    found = [(row["blocks"], row["layers"], row["cache"]) for row in rows]
    assert found == [
        (blocks, layers, cache) for blocks in ("unrolled", "scan") for layers in (2, 4) for cache in ("cold", "warm")
    ]
    assert len({cache for *_, cache in asked}) == 8  # a new cache each time, and twice the same
    assert (rows[0]["compile s"], rows[0]["all s"], rows[0]["all s (least)"], rows[0]["all s (most)"]) == (2, 5, 4, 6)
    assert [row["times 2 layers"] for row in rows if row["cache"] == "warm"] == [1, 5 / 3, 1, 1]


@pytest.mark.slow  # half a minute: four processes
def test_a_cached_program_is_not_compiled_again():
    cold, warm, *_ = compare("vit_ti16", "float32", 2, 32, layers=[2], rounds=1)
    assert warm["compile s"] < cold["compile s"] / 2
