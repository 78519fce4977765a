"""Shares of active units: counted by hand, the same under scan, remat and accumulation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.vit import ViT
from vit_jax.objectives import Classify, activity
from vit_jax.types import UserError

TINY = functools.partial(ViT, patch=4, width=16, depth=2, heads=2, mlp_dim=24, num_classes=3, activation="relu")


@pytest.fixture(scope="module")
def setting():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)), jnp.float32)
    return nn.meta.unbox(jax.jit(TINY().init)(jax.random.key(0), images)["params"]), images


def apply_of(**fields):
    model = TINY(**fields)
    return lambda params, *inputs, **options: model.apply({"params": params}, *inputs, **options)


@jax.jit
def captured(params, images):
    return apply_of()(params, images, train=False, capture_intermediates=True, mutable=["intermediates"])[1]


def counted(params, images, block):
    """The definition: units above 0 of all tokens of an image."""
    state = captured(params, images)
    x = np.asarray(state["intermediates"]["encoder"][block]["norm_mlp"]["__call__"][0])
    p = params["encoder"][block]["mlp"]["mlp_in"]
    return np.mean(x @ np.asarray(p["kernel"]) + np.asarray(p["bias"]) > 0, axis=(1, 2))


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": "full"}])
def test_shares_are_those_counted_by_hand(setting, options):
    params, images = setting
    mask = jnp.asarray([True, True, False, True])
    logits, found = jax.jit(lambda p, x: activity.shares(apply_of(**options), mask, p, x, train=True))(params, images)
    np.testing.assert_allclose(logits, jax.jit(functools.partial(apply_of(), train=False))(params, images), atol=1e-5)
    assert list(found) == ["block_0/mlp", "block_1/mlp"]
    want = {name: counted(params, images, name.split("/")[0]) for name in found}
    for name, share in found.items():
        np.testing.assert_allclose(share, want[name], rtol=1e-6)
    means = {name: value.value() for name, value in activity.metrics(found, mask).items()}
    keep = np.asarray(mask)
    for name in found:
        np.testing.assert_allclose(means[f"active/{name}"], want[name][keep].mean(), rtol=1e-6)
    np.testing.assert_allclose(means["active"], np.mean([w[keep].mean() for w in want.values()]), rtol=1e-6)


@pytest.mark.thorough
def test_a_training_step_measures_them_in_any_number_of_slices(setting):
    params, images = setting
    batch = {"image": images, "label": jnp.asarray([0, 1, 2, 1]), "mask": jnp.asarray([True, True, False, True])}
    plain, watched = Classify(), Classify(activity=True)
    (loss, without), grads = jax.jit(lambda p: plain.value_and_grad(apply_of(), p, batch, {}, 1))(params)
    for micro in (1, 2):
        step = jax.jit(lambda p, n=micro: watched.value_and_grad(apply_of(remat="dots"), p, batch, {}, n))
        (same, metrics), g = step(params)
        np.testing.assert_allclose(same, loss, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g, grads)
        assert set(metrics) == set(without) | {"active", "active/block_0/mlp", "active/block_1/mlp"}
        want = counted(params, images, "block_1")[np.asarray(batch["mask"])].mean()
        np.testing.assert_allclose(metrics["active/block_1/mlp"].value(), want, rtol=1e-6)


def test_a_model_without_mlps_is_refused():
    def apply(params, image, *, mutable):
        return image, {}

    with pytest.raises(UserError, match="this model has none"):
        activity.shares(apply, jnp.ones(2, bool), {}, jnp.ones((2, 3)))
