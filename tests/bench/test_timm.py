"""timm's side is the same model: as many parameters, and steps that learn."""

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.bench import timm as bench
from vit_jax.models.describe import shapes
from vit_jax.types import UserError

NAMES = {
    "vit_ti16": "vit_tiny_patch16_224", "vit_s16": "vit_small_patch16_224", "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224", "mixer_b16": "mixer_b16_224", "convnext_atto": "convnext_atto",
}  # fmt: skip
SMALL = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


def test_names_are_timms():
    for name, theirs in NAMES.items():
        found = bench.arguments(models.create(name), 224)
        assert found["model_name"] == theirs and found["num_classes"] == 1000
        assert found.get("img_size") == (None if name.startswith("convnext") else 224)


@pytest.mark.parametrize("change", [{"mlp_linear": "monarch(4)"}, {"reduce": "merge(13)"}])
def test_what_timm_has_not(change):
    with pytest.raises(UserError):
        bench.arguments(models.create("vit_ti16", **change), 224)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_agree(timm, name):
    model = models.create(name)
    theirs = timm.create_model(**bench.arguments(model, 224), device="meta")
    assert sum(p.numel() for p in theirs.parameters()) == sum(map(np.prod, shapes(model, 224).values()))


def test_steps(torch, timm):
    given = bench.arguments(models.create("vit", **SMALL), 8)
    forward, facts = bench.candidate("forward", given, "bfloat16", 2, 8, False)
    assert forward().shape == (2, 3) and forward().dtype == torch.bfloat16 and not forward().requires_grad
    assert facts["parameters"] == sum(map(np.prod, shapes(models.create("vit", **SMALL), 8).values()))
    train, _ = bench.candidate("train", given, "float32", 2, 8, False)
    losses = [float(train().detach()) for _ in range(20)]
    assert losses[-1] < losses[0] and jax.numpy.isfinite(losses[-1])
