"""The state is born sharded, in the shapes and layouts that were announced."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import models
from vit_jax.objectives import Classify
from vit_jax.sharding import MeshConfig, make_mesh
from vit_jax.train import rng
from vit_jax.train.state import abstract_params, make_init

INPUTS = (jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"),)
MODEL = models.create("vit", patch=4, width=64, depth=1, heads=2, mlp_dim=512, num_classes=5)


def make(mesh, ema=True, seed=3):
    return make_init(MODEL, INPUTS, optax.adam(1e-3), Classify(), seed=seed, ema=ema, mesh=mesh)


def test_abstract_params_cost_nothing_and_know_their_axes():
    boxed = abstract_params(MODEL, INPUTS)
    assert isinstance(boxed["head"]["kernel"], nn.LogicallyPartitioned)
    assert boxed["head"]["kernel"].names == ("embed", "classes")
    assert isinstance(jax.tree.leaves(boxed)[0], jax.ShapeDtypeStruct)


@pytest.fixture(scope="module")
def single():
    init, shapes, shardings = make(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    return init, shapes, shardings, init()


def test_fresh_state(single):
    _, shapes, shardings, state = single
    assert int(state.step) == 0
    expected = nn.unbox(jax.jit(MODEL.init)(rng.stream(3, "params"), jnp.zeros(INPUTS[0].shape))["params"])
    chex.assert_trees_all_close(state.params, expected, atol=1e-6)
    chex.assert_trees_all_equal(state.ema, state.params)
    assert state.eval_params is state.ema
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_given_parameters_are_used(single):
    init, _, _, state = single
    ones = jax.tree.map(jnp.ones_like, state.params)
    found = init(ones)
    chex.assert_trees_all_equal(found.params, ones)
    chex.assert_trees_all_equal(found.ema, ones)
    chex.assert_trees_all_equal(found.opt_state, state.opt_state)  # fresh


def test_shapes_among_them_are_drawn_as_a_fresh_state_has_them(single):
    init, shapes, _, state = single
    given = jax.tree.map(jnp.ones_like, state.params) | {"patch": shapes.params["patch"]}
    found = init(given).params
    chex.assert_trees_all_equal(found["patch"], state.params["patch"])
    chex.assert_trees_all_equal(found["encoder"], given["encoder"])
    assert float(jnp.abs(found["patch"]["kernel"]).max()) > 0


def test_without_an_average_the_parameters_are_evaluated():
    _, shapes, shardings = make(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), ema=False)
    assert shapes.ema is None and shardings.ema is None
    assert shapes.eval_params is shapes.params


def test_the_mesh_changes_the_layout_and_not_the_values(single):
    init, _, shardings = make(make_mesh(MeshConfig(2, 2, 2)))
    state = init()
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(single[3]))
    kernel = state.params["encoder"]["block_0"]["mlp"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32, 256)
    mu = shardings.opt_state[0].mu["encoder"]["block_0"]["mlp"]["mlp_in"]["kernel"]
    assert mu == kernel.sharding and np.prod(mu.shard_shape(kernel.shape)) == kernel.size // 4
