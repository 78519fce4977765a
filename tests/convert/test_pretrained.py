"""What travels with weights: preprocessing, parameters by path, names of classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored, numbered
from vit_jax.io.tensors import Tensor
from vit_jax.models.describe import shapes


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
