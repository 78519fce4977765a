"""The baseline has as many parameters as the model it is the baseline of, and runs in bfloat16."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models.plain import PlainViT


def test_same_count_as_vit_b16():
    image = jnp.zeros((1, 224, 224, 3))
    counts = []
    for model in (PlainViT(dtype="bfloat16"), models.create("vit_b16", dtype="bfloat16")):
        with jax.numpy_dtype_promotion("standard"):  # Flax's own layers do not keep to strict promotion
            shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
            assert jax.eval_shape(model.apply, shapes, image).shape == (1, 1000)
        counts.append(sum(x.size for x in jax.tree.leaves(shapes)))
    assert counts[0] == counts[1] == 86_567_656
