"""A run may change its mesh on the way."""

import jax
import numpy as np
import pytest

from vit_jax import metrics
from vit_jax.train import loop

RAW = {
    "model": {
        "name": "vit",
        "patch": 4,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 128,
        "pool": "gap",
        "dropout": 0.1,
    },
    "data": {"path": "digits", "canvas": 8},
    "augment": {"size": 8, "train": ["affine", "mixup"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "batch_size": 64,
    "duration": 16,
    "log_every": 1,
    "eval_every": 8,
    "checkpoint_every": 4,
    "ema": 0.9,
}


def losses(folder):
    return np.array([r["train/loss"] for r in metrics.read(folder) if "train/loss" in r])


class Stop(Exception):
    pass


def stop_at_6(moment):
    if moment.step == 6:
        raise Stop


TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
CHANGES = {
    "classification": {},
    "accumulated SAM": {"accumulate": 2, "optim": {**RAW["optim"], "sam": "sam(rho=0.05)"}},
    "CLIP by the ring": {
        "model": {"name": "two_tower", "image_tower": {"name": "vit", "patch": 8, "pool": "gap", **TOWER},
                  "text_tower": TOWER, "embed_dim": 8},
        "objective": {"name": "contrast", "form": "ring"},
        "data": {"path": "digits_pairs", "canvas": 16, "text": {"tokenizer": "bytes", "length": 52}},
        "augment": {"size": 16, "train": ["flip"]},
        "evaluators": ["retrieval"],
        "best": "val/mean_r1",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_mesh_goes_on_with_the_same_curve(change, tmp_path, monkeypatch):
    """One device until step 4, then 2x2x2: equal to 1e-5."""
    raw = {**RAW, "model": {**RAW["model"], "depth": 1}, "duration": 8, "plots": False, **change}
    one = {**raw, "mesh": {"replica": 1, "fsdp": 1, "tensor": 1}}
    devices = jax.devices()
    with monkeypatch.context() as m:
        m.setattr(jax, "devices", lambda *a: devices[:1])
        m.setattr(jax, "device_count", lambda *a: 1)
        loop.run(one, tmp_path / "whole")
        with pytest.raises(Stop):
            loop.run(one, tmp_path / "cut", hooks=[stop_at_6])
    result = loop.run({**raw, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}, tmp_path / "cut")
    assert result.setup.mesh.size == 8
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-5)
