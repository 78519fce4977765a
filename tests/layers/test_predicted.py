"""Masks of attention by the predictor's equations in float64, and what trains it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.predicted import Predicted
from vit_jax.layers.terms import LogitBiasSpec
from vit_jax.models import cost
from vit_jax.models.describe import describe
from vit_jax.types import UsageError, UserError

SPEC = Predicted(keep=0.4, tokens=2, channels=2, coefficients=3, threshold=0.3)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def heads(rng, tokens=11, k=3, e=4):
    q, k = (rng.standard_normal((2, tokens, k, e)).astype("float32") for _ in range(2))
    shapes = nn.unbox(jax.eval_shape(SPEC(name="x").init, jax.random.key(0), q, k))["params"]
    return q, k, jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.5, jnp.float32), shapes)


def shares(p, q, k):
    """``[B, K, N - 1, m]`` of all rows but the first."""
    q, k = (x @ p[n]["kernel"] + p[n]["bias"] for n, x in (("predict_query", q), ("predict_key", k)))
    low = np.einsum("bnkc,nm->bkmc", k, p["predict_down"])
    return softmax(np.einsum("bnkc,bkmc->bknm", q[:, 1:], low) / np.sqrt(q.shape[2]))


def wide(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def test_masks_are_the_largest_of_the_formula_and_exactly_as_many(rng):
    q, k, params = heads(rng)
    run = jax.jit(lambda p: SPEC(name="x").apply({"params": p}, q, k))
    p = wide(params)
    found, up = np.ascontiguousarray(shares(p, q, k)), p["predict_up"] * (np.abs(p["predict_up"]) > 0.3)
    assert 0 < (up == 0).mean() < 1
    for row in found.reshape(-1, found.shape[-1]):
        row[np.argsort(-row)[3:]] = 0
    order = np.argsort(-(found @ up.T), axis=-1, kind="stable")
    want = np.ones((2, 3, 11, 11), bool)
    np.put_along_axis(want[:, :, 1:], order[..., 5:], False, axis=-1)
    np.testing.assert_array_equal(run(params) == 0, want)
    tied = np.asarray(run({**params, "predict_up": jnp.zeros_like(params["predict_up"])})) == 0  # alike: the first
    assert (tied.sum(-1) == np.array([11] + [5] * 10)).all() and tied[:, :, 1:, :5].all()


def test_reconstruction_is_a_sum_of_squares_and_its_gradient(rng):
    """Of rows that are predicted; nothing reaches queries and keys."""
    q, k, params = heads(rng)

    def value(params, q, k):
        bias, state = SPEC(name="x").apply({"params": params}, q, k, mutable=["reconstruction"])
        error = state["reconstruction"]["error"]
        return jnp.sum(error), (bias, error)

    (by_params, *others), (bias, error) = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(params, q, k)
    dense = softmax(np.einsum("bnke,bmke->bknm", *(x.astype("float64") for x in (q, k))) / 2)[:, :, 1:]
    want = lambda p: ((shares(p, q, k) @ p["predict_up"].T - dense) ** 2).sum((1, 2, 3))  # noqa: E731
    np.testing.assert_allclose(error, want(wide(params)), rtol=1e-5)
    assert not np.any(bias) and not any(np.any(x) for x in others)
    way = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    ends = [want(jax.tree.map(lambda x, d, s=s: x + s * d, wide(params), way)).sum() for s in (1e-5, -1e-5)]
    along = sum(np.sum(x * d) for x, d in zip(*map(jax.tree.leaves, (wide(by_params), way)), strict=True))
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


FIELDS = {"num_classes": 3, "patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 12}


@pytest.mark.thorough
def test_a_model_that_keeps_all_is_dense_and_one_that_does_not_attends_to_as_many(rng):
    image = jnp.asarray(rng.standard_normal((2, 12, 12, 3)), jnp.float32)
    model = models.create("vit", **FIELDS, logit_bias="predicted(1.0)")
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))["params"]
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.4, jnp.float32), shapes)
    run = lambda m, p: jax.jit(lambda p: m.apply({"params": p}, image, mutable=["intermediates"]))(p)  # noqa: E731
    logits, state = run(model, params)
    plain = jax.tree.map(lambda x: x, params)
    for block in plain["encoder"].values():
        if "attention" in block:
            del block["attention"]["logit_bias"]
    np.testing.assert_allclose(logits, run(models.create("vit", **FIELDS), plain)[0], atol=1e-5)
    fewer, state = run(model.clone(logit_bias=Predicted(0.25)), params)
    assert not np.allclose(fewer, logits, atol=1e-3)
    for i in range(2):
        seen = np.asarray(state["intermediates"]["encoder"][f"block_{i}"]["attention"]["attention"][0])
        assert ((seen > 0).sum(-1) == np.array([10] + [3] * 9)).all()
        np.testing.assert_allclose(seen.sum(-1), 1, rtol=1e-5)
    value = lambda p: jnp.sum(jnp.sin(model.clone(logit_bias=Predicted(0.25)).apply({"params": p}, image)))  # noqa: E731
    grads = jax.jit(jax.grad(value))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    within = [b["attention"] for n, b in grads["encoder"].items() if n != "norm"]
    assert all(not np.any(x) for a in within for x in jax.tree.leaves(a["logit_bias"]))
    assert all(np.any(x) for a in within for x in jax.tree.leaves(a["qkv"]))


def test_as_a_user_writes_it():
    model = models.create("vit", **FIELDS, logit_bias="predicted(0.5, rows=0)")
    assert model.logit_bias == Predicted(0.5, rows=0) and models.create(**describe(model)) == model
    assert config.parse(LogitBiasSpec, "predicted", "x") == Predicted()
    assert [Predicted(0.25).count(n) for n in (196, 197)] == [49, 50]
    for spec, says in (("predicted(0)", "keep=0"), ("predicted(tokens=0)", "tokens=0"), ("predicted(rows=-1)", "rows")):
        with pytest.raises(UsageError, match=says):
            models.create("vit", logit_bias=spec)


def test_a_predictor_of_too_few_tokens_is_refused():
    q = np.zeros((1, 5, 2, 4), np.float32)
    with pytest.raises(UserError, match=r"predicted\(tokens=6\) leaves none of 5 tokens; give at most 5"):
        jax.eval_shape(lambda: Predicted()(name="x").init(jax.random.key(0), q, q))


def test_flops_that_masks_spare():
    model = models.create("vit", **FIELDS, logit_bias=Predicted(0.4, tokens=2, coefficients=3))
    inputs = model.inputs(12)  # 10 tokens, of which 4 are attended to, 5 coefficients, of which 3 count
    assert cost.spared(model, inputs) == 2 * 9 * (2 * 2 * 6 * 8 + 2 * 2 * 10 * 2)
    assert cost.spared(models.create("vit", **FIELDS), inputs) == 0
