"""The baseline has as many parameters as the model it is the baseline of, and runs in bfloat16."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax import models
from vit_jax.bench.plain import twin


@pytest.mark.thorough
def test_same_count_as_vit_b16():
    image = jnp.zeros((1, 224, 224, 3))
    counts = []
    vit = models.create("vit_b16", dtype="bfloat16")
    for model in (twin(vit), vit):
        with jax.numpy_dtype_promotion("standard"):  # Flax's own layers do not keep to strict promotion
            shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
            assert jax.eval_shape(model.apply, shapes, image).shape == (1, 1000)
        counts.append(sum(x.size for x in jax.tree.leaves(shapes)))
    assert counts[0] == counts[1] == 86_567_656


@pytest.mark.parametrize("change", [{"pool": "gap"}, {"mlp_linear": "monarch(4)"}, {"registers": 4}, {"stem": (2,)}])
def test_a_model_with_more_than_sizes_has_no_twin(change):
    assert twin(models.create("vit_ti16", patch=8, num_classes=3)) is not None
    assert twin(models.create("vit_ti16", **change)) is None


@pytest.mark.parametrize("name", ["mixer_b16", "m2_vit_ti16", "clip_vit_b32"])
def test_other_families_have_none(name):
    assert twin(models.create(name)) is None
