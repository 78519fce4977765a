"""What a TPU's compiler expects of models; where it is asked, of tiny ones."""

import json

import jax
import pytest

from vit_jax import models
from vit_jax.bench import tpu
from vit_jax.bench.tpu import Estimate
from vit_jax.plan.account import Entry
from vit_jax.plan.report import Kernel
from vit_jax.types import UserError

ENTRIES = tuple(Entry(f"layer {i}", "product", 10**6 * i, 1e9, 10**6, 10**5, 12) for i in range(20, 0, -1))
ONE = Estimate(
    "vit", 220 * 10**6, 10**8, 10**9, 0.15, 0.45, 7, (*ENTRIES, Entry("layer 20", "copy", 10**7, 0.0, 0, 0, 1)),
    (Kernel("times f32[8]", "layer 3", 12, 700, 25, 210_000, 0, ""), Kernel("odd", "", 1, 0, 0, 0, 0, "refused")),
    ("An estimate.",),
)  # fmt: skip


def test_an_estimate_names_what_to_attack():
    text = "\n".join(ONE.lines())
    for part in (
        "vit: 220.00 million cycles, 150.00 ms, MFU 45.0%", "at least 100.00 for the products", "1,000 MB",
        "product 210.00, copy 10.00", "7 times", "kernel times f32[8]: 0.21 million, 12 calls of 700 bundles x 25",
        "kernel odd: refused",
    ):  # fmt: skip
        assert part in text, part
    assert [e.layer for e in ONE.attack] == [f"layer {i}" for i in range(20, 10, -1)]
    summary = json.loads(json.dumps(ONE.summary()))
    assert summary["kinds"]["product"] == 210 * 10**6 and len(summary["attack"]) == tpu.ATTACKED


def test_bars_are_layers_with_the_others_as_one():
    found = tpu.bars(ONE)
    assert list(found)[:2] == ["layer 20", "layer 19"] and len(found) == 15
    assert found["layer 20"] == {"product": 20.0, "copy": 10.0} and found["others"]["product"] == 21.0


def test_what_has_no_plain_twin_is_a_sentence():
    with pytest.raises(UserError, match="no model of plain Flax layers that is 'mixer'"):
        tpu.compare("forward", "mixer", models.create("mixer_b16"), "v5e", batch=2, size=224, against="plain")


SMALL = {"width": 128, "heads": 2, "depth": 1, "mlp_dim": 256}
MODELS = {
    "vit": (models.create("vit", patch=16, num_classes=10, **SMALL), "train", "plain"),
    "mixer": (models.create("mixer_s32", depth=1), "forward", ""),
    "clip": (
        models.create(
            "clip_vit_b32",
            image_tower={**SMALL, "name": "vit", "patch": 16},
            text_tower={**SMALL, "vocab_size": 512, "length": 16},
        ),
        "train",
        "",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_compiler_is_asked(name, tpu_chips, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, work, against = MODELS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # of Flax's own layers
        found = tpu.compare(work, name, model, "v5e", batch=8, size=64, against=against)
    for one in found:
        assert one.cycles > one.floor > 0 and 0 < one.mfu < 1 and one.kinds["product"] > 0 and one.seconds > 0
        assert sum(e.flops for e in one.entries) == pytest.approx(one.floor * 2**17, rel=0.35)
        assert all(k.reason == "" for k in one.kernels) and one.bytes > 0
