"""What all image models share."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import create
from vit_jax.models.base import Features, ImageModel, abstract_init, cast_kernels, needs_barriers, portable


class Mean(ImageModel):
    dtype: str = "float32"

    def encode(self, image, train):
        tokens = image.reshape(image.shape[0], -1, image.shape[-1]).astype(jnp.bfloat16)
        return Features(tokens, tokens[:, 0])


@pytest.mark.parametrize(("classes", "shape"), [(0, (2, 3)), (4, (2, 4))])
def test_the_head_is_optional_and_float32(classes, shape):
    model, image = Mean(classes), jnp.ones((2, 2, 2, 3))
    params = model.init(jax.random.key(0), image)
    assert ("params" in params) == bool(classes)
    assert model.apply(params, image).shape == shape and model.apply(params, image).dtype == jnp.float32
    assert model.apply(params, image, method="features").pooled.dtype == jnp.float32


class Counted(Mean):
    sizes: Any = None
    traced: ClassVar[list[str]] = []

    def encode(self, image, train):
        self.traced.append(self.dtype)
        return super().encode(image, train)


def test_an_equal_model_is_traced_once_and_its_shapes_are_the_callers_own():
    image = (jnp.ones((2, 2, 2, 3)),)
    Counted.traced.clear()
    first, second = (abstract_init(Counted(4), inputs) for inputs in (image, Counted(4).inputs(2)))
    assert jax.tree.map(lambda x: x.shape, first["params"]["head"]["kernel"].value) == (3, 4)
    assert Counted.traced.count("float32") == 2  # images of two shapes
    again = abstract_init(Counted(4), image)
    assert len(Counted.traced) == 2 and again == first and again is not first
    again["params"].clear()
    assert abstract_init(Counted(4), image) == first == second
    assert abstract_init(Counted(4, sizes=np.ones(3)), image) == first  # which has no hash
    assert len(Counted.traced) == 3


def test_cast_touches_the_kernels_of_blocks_only():
    leaf = jnp.ones((2, 2))
    tree = {
        "encoder": {"block_0": {"kernel": leaf, "kernel_1": leaf, "kernel_scale": leaf, "bias": leaf}},
        "head": {"kernel": leaf},
    }
    types = jax.tree.map(lambda x: str(x.dtype), cast_kernels(Mean(dtype="bfloat16"), tree))
    low = {"kernel": "bfloat16", "kernel_1": "bfloat16", "kernel_scale": "float32", "bias": "float32"}
    assert types == {"encoder": {"block_0": low}, "head": {"kernel": "float32"}}


def test_a_portable_model_has_no_kernel_of_a_platform_and_the_same_parameters():
    fields = {"scan": True, "remat": "full", "mlp_linear": "monarch(2)", "attention": "cudnn"}
    tower = {"name": "vit", "width": 32, "depth": 1, "heads": 2, "mlp_dim": 32, **fields}
    plain = portable(create("two_tower", image_tower=tower, text_tower={})).image_tower
    assert (plain.scan, plain.remat, plain.attention) == (False, "none", "xla")
    assert plain.mlp_linear == dataclasses.replace(
        create("vit", mlp_linear="monarch(2)").mlp_linear, implementation="xla"
    )
    assert portable(plain) is plain


def test_barriers_are_needed_if_one_of_the_towers_needs_them():
    assert not needs_barriers(create("vit"))
    assert needs_barriers(create("vit", remat="dots")) and needs_barriers(create("vit", scan=True))
    assert needs_barriers(create("two_tower", image_tower={"name": "vit"}, text_tower={"remat": "full"}))
    assert not needs_barriers(create("two_tower", image_tower={"name": "vit"}, text_tower={}))
