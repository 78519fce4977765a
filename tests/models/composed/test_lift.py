"""LiFT against loops in float64; a shift of the image; the tower stays as it is, at any size of the image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.layers.embed import resize_positions
from vit_jax.models.composed.lift import Lift
from vit_jax.types import UserError

TOWER = {"name": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 12}


def drawn(shapes, seed=0):
    """Random variables of every kind, variances positive."""
    rng = np.random.default_rng(seed)
    draw = lambda s: jnp.asarray(rng.uniform(0.2, 0.7, s.shape) * rng.choice([1, 1, -1], s.shape), jnp.float32)  # noqa: E731
    tree = jax.tree.map(draw, nn.meta.unbox(shapes))
    stats = jax.tree_util.tree_map_with_path(lambda p, x: abs(x) if p[-1].key == "var" else x, tree.get("batch_stats"))
    return {**tree, "batch_stats": stats}


def convolved(x, kernel, stride):
    """Loops over places: zeros beyond the edge."""
    b, h, w, _ = x.shape
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((b, -(-h // stride), -(-w // stride), kernel.shape[-1]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            at = wide[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            y[:, i, j] = np.einsum("bhwc,hwcd->bd", at, kernel)
    return y


def lifted(variables, features, image, halvings):
    p, s = (jax.tree.map(lambda x: np.asarray(x, np.float64), variables[c]) for c in ("params", "batch_stats"))

    def layer(name, x, stride=1):
        y = convolved(x, p[name]["kernel"], stride)
        norm, kept = p[f"norm_{name}"], s[f"norm_{name}"]
        y = (y - kept["mean"]) / np.sqrt(kept["var"] + 1e-5) * norm["scale"] + norm["bias"]
        return np.maximum(y, 0)

    a = layer("image_0", image, 2)
    a = layer("image_1", a, 2) if halvings > 2 else a
    for _ in range(halvings - 3):
        b, h, w, c = a.shape
        a = a.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    x = np.concatenate([features, layer("image_last", a, 2)], -1)
    up = (x @ p["up"]["kernel"] + p["up"]["bias"]).reshape(*x.shape[:3], 2, 2, -1)
    wide = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], up.shape[-1]))
    for i in range(2):  # a transposed convolution of 2x2 and stride 2
        for j in range(2):
            wide[:, i::2, j::2] = up[:, :, :, i, j]
    x = layer("conv_1", layer("conv_0", np.concatenate([wide, a], -1)))
    return x @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.first(1)
@pytest.mark.parametrize(("patch", "grid"), [(16, (1, 3)), (8, (2, 3)), (4, (3, 5))])
def test_the_doubled_grid_against_loops(patch, grid, rng):
    features = rng.standard_normal((2, *grid, 6))
    image = rng.standard_normal((2, patch * grid[0], patch * grid[1], 3))
    inputs = [jnp.asarray(x, jnp.float32) for x in (features, image)]
    run = jax.jit(lambda v, *x: Lift().apply(v, *x, batch=False))
    variables = drawn(jax.eval_shape(lambda *x: Lift().init(jax.random.key(0), *x, batch=False), *inputs))
    want = lifted(variables, features, image, int(np.log2(patch)))
    assert want.shape == (2, 2 * grid[0], 2 * grid[1], 6)
    np.testing.assert_allclose(run(variables, *inputs), want, atol=1e-5 * np.abs(want).max())


@pytest.fixture(scope="module")
def made():
    """A model for 16 px, its variables, an image of 32 px."""
    model = models.create("lift", image_tower=TOWER, side=16)
    image = jnp.asarray(np.random.default_rng(3).standard_normal((2, 32, 32, 3)), jnp.float32)
    return model, drawn(jax.eval_shape(model.init, jax.random.key(0), image)), image


def test_a_shift_by_a_patch_is_one_by_two_places():
    """Away from the borders: tokens without positions go along with their patches."""
    model = models.create("lift", image_tower={**TOWER, "positions": "none"})
    image = np.random.default_rng(1).standard_normal((1, 40, 40, 3)).astype(np.float32)
    run = jax.jit(lambda v, x: model.apply(v, x, method="features").tokens.reshape(20, 20, -1))
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), image))
    one, other = run(variables, image), run(variables, np.roll(image, (4, 8), (1, 2)))
    inside = (slice(8, 14), slice(10, 14))
    np.testing.assert_allclose(other[inside], np.roll(one, (2, 4), (0, 1))[inside], rtol=1e-4, atol=1e-4)
    assert np.ptp(one[inside], axis=(0, 1)).min() > 1e-2
    assert np.abs(other[inside] - one[inside]).max() > 1e-2


@pytest.mark.thorough
def test_the_tower_is_the_one_that_it_was(made):
    """Pooled features and what is doubled, at the size of its positions and at another."""
    model, variables, image = made
    assert model.roles(variables["params"])["lift"]["out"]["kernel"].part == "head"
    tower, params = model.image_encoder(variables["params"])
    assert (tower, params) == (model.image_tower, variables["params"]["image_tower"])
    assert params["position"]["embedding"].shape == (1, 17, 8)
    alone = jax.jit(lambda p, x: tower.apply({"params": p}, x, method="features"))
    doubled = jax.jit(lambda v, x: model.apply(v, x, method="doubled"))(variables, image)
    assert [g.shape for g in (*doubled.found, *doubled.wanted)] == [(2, 8, 8, 8), (2, 4, 4, 8)] * 2
    for step, grids in ((1, doubled.wanted[:1]), (2, (doubled.wanted[1], doubled.small[0])), (4, doubled.small[1:])):
        side = 8 // step
        table = resize_positions(params["position"]["embedding"], (4, 4), (side, side), 1)
        want = alone({**params, "position": {"embedding": table}}, image[:, ::step, ::step])
        for grid in grids:
            np.testing.assert_allclose(grid.reshape(2, side**2, 8), want.tokens[:, 1:], atol=1e-6)
    found = jax.jit(lambda v, x: model.apply(v, x, method="features"))(variables, image[:, ::2, ::2])
    np.testing.assert_array_equal(found.pooled, alone(params, image[:, ::2, ::2]).pooled)
    np.testing.assert_allclose(found.tokens.reshape(2, 8, 8, 8), doubled.found[0], atol=1e-5)


def test_all_but_the_tower_learns(made):
    """By both sizes, whose batches move the running statistics one after the other."""
    model, variables, image = made

    def loss(params):
        tree = {**variables, "params": params}
        found, state = model.apply(tree, image, train=True, method="doubled", mutable=["batch_stats"])
        return sum(jnp.sum(jnp.sin(grid)) for grid in found.found), state

    grads, state = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    assert not any(np.any(g) for g in jax.tree.leaves(grads["image_tower"]))
    assert all(np.any(g) for g in jax.tree.leaves(grads["lift"]))
    same = jax.tree.map(
        lambda a, b: np.array_equal(a, b), dict(state["batch_stats"]), jax.device_get(variables["batch_stats"])
    )
    assert not any(jax.tree.leaves(same))


def test_what_cannot_be_doubled_is_named(made):
    model, variables, image = made
    with pytest.raises(UserError, match=r"of an image of 24x32 .* of 4; set augment.size to a multiple of 16"):
        model.apply(variables, image[:, :24], method="doubled")
    wrong = {"leave the tower's reduce out": {"reduce": "merge(2)"}, "patches of 6 pixels": {"patch": 6}}
    for sentence, fields in wrong.items():
        tower = models.create("lift", image_tower={**TOWER, **fields}, side=24)
        with pytest.raises(UserError, match=sentence):
            jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
