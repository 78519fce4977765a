"""What travels with weights: preprocessing, parameters by path, names of classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.augment import Augment
from vit_jax.convert.pretrained import Preprocess, Stored, numbered
from vit_jax.io.tensors import Tensor
from vit_jax.models.describe import shapes


@pytest.mark.parametrize("norm", ["inception", "imagenet", "clip", "norm(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))"])
def test_preprocessing_survives_as_a_configuration(norm):
    augment = config.parse(Augment, {"size": 48, "crop": 0.875, "interpolation": "bicubic", "norm": norm})
    section = Preprocess.of(augment, 60).augment()
    assert config.parse(Augment, section) == augment
    assert (section["norm"] == norm) == (not norm.startswith("norm("))


def test_the_canvas_is_what_is_cut():
    assert Preprocess(224, 0.875).host_canvas == 256 and Preprocess(224, 0.9).host_canvas == 249
    assert Preprocess(224, 0.9, canvas=300).host_canvas == 300


def test_shapes_and_trees(rng):
    model = models.create("mixer", patch=4, width=8, depth=1, token_dim=5, mlp_dim=6, num_classes=3)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    flat = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    assert shapes(model, 8) == {path: x.shape for path, x in flat.items()}
    tensors = {path: Tensor.of(np.asarray(x)) for path, x in flat.items()}
    tree = Stored(model, tensors, Preprocess(8)).tree(jnp.asarray)
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, tree, params)


def test_classes_without_names_are_numbered():
    assert numbered(("a", "b"), 2) == ("a", "b") and numbered((), 2) == ("0", "1")
