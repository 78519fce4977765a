"""Time of a step by kind of operation."""

import jax
import pytest

from vit_jax import models
from vit_jax.bench.breakdown import kinds, profile, shared
from vit_jax.config import Variant

SIZES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}
BLOCK = "jit(train)/jvp(ViT)/encoder/block_0/block_0.branch"
TEXT = f"""
%fused.1 (p: f32[2]) -> f32[2] {{
  %p = f32[2]{{0}} parameter(0)
  ROOT %dot.3 = f32[2,2]{{1,0}} dot(%p, %p), metadata={{op_name="{BLOCK}/mlp/mlp_in/mlp_in.product/dot_general"}}
}}

%fused.2 (p: f32[2]) -> (f32[2], f32[2]) {{
  %mul.1 = f32[2]{{0}} multiply(%p, %p), metadata={{op_name="jit(train)/mul"}}
  ROOT %t = (f32[2]{{0}}, f32[2]{{0}}) tuple(%mul.1, %mul.1)
}}

ENTRY %main (x: f32[2]) -> f32[2] {{
  %ynn_fusion = f32[2]{{0}} fusion(%x), kind=kCustom, calls=%fused.1
  %pair = (f32[2]{{0}}, f32[2]{{0}}) fusion(%x), kind=kLoop, calls=%fused.2
  %dot.5 = f32[2]{{0}} dot(%x, %x), metadata={{op_name="{BLOCK}/attention/dot_general"}}
  %exp.1 = f32[2]{{0}} exponential(%x), metadata={{op_name="{BLOCK}/attention/exp"}}
  %mul.2 = f32[2]{{0}} multiply(%x, %x), metadata={{op_name="{BLOCK}/norm_mlp/mul"}}
  %cast = f32[2]{{0}} convert(%x), metadata={{op_name="{BLOCK}/mlp/mlp_in/mlp_in.product/convert_element_type"}}
  %erf.1 = f32[2]{{0}} erf(%x), metadata={{op_name="{BLOCK}/block_0.mlp/mlp/erf"}}
  %add.1 = f32[2]{{0}} add(%x, %x), metadata={{op_name="{BLOCK}/add"}}
  %log.1 = f32[2]{{0}} log(%x), metadata={{op_name="jit(train)/jvp()/log"}}
  ROOT %copy.1 = f32[2]{{0}} copy(%x)
}}
"""


def test_kinds_are_read_from_the_program():
    found = kinds(TEXT)
    assert {name: found[name] for name in ("ynn_fusion", "pair", "dot.5", "exp.1", "mul.2", "cast")} == {
        "ynn_fusion": "products with weights", "pair": "optimizer", "dot.5": "products of attention",
        "exp.1": "softmax and copies of attention", "mul.2": "layer norms", "cast": "casts, biases and their gradients",
    }  # fmt: skip
    assert [found[name] for name in ("erf.1", "add.1", "log.1", "copy.1")] == [
        "activations", "residual sums", "head and loss", "copies",
    ]  # fmt: skip


def test_instants_are_shared():
    intervals = [("a", 0.0, 10.0), ("b", 5.0, 15.0), ("b", 20.0, 21.0), ("a", 5.0, 6.0), ("c", 7.0, 7.0)]
    found = shared(intervals)
    assert found == pytest.approx(
        {"a": 5 + 2 / 3 + 4 / 2, "b": 1 / 3 + 4 / 2 + 5 + 1, "between operations": 5.0, "c": 0}
    )
    assert sum(found.values()) == pytest.approx(21)


def test_a_step_is_all_that_ran_in_it(monkeypatch):
    monkeypatch.setitem(models.NAMES, "tiny", Variant(models.ViT, SIZES))
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        *rows, whole = profile("train", "tiny", "bfloat16", 2, 8, rounds=2)
    assert {"products with weights", "products of attention", "layer norms", "optimizer"} <= {r["kind"] for r in rows}
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    assert whole["kind"] == "the whole step" and whole["share"] == 1
    assert whole["operations"] == sum(row["operations"] for row in rows) > 20
