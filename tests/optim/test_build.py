from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import config, models
from vit_jax.config import Duration
from vit_jax.models.roles import roles
from vit_jax.optim import OPTIMIZERS, SAM, OptimConfig, build, trainable
from vit_jax.optim.build import decay_factors, lr_factors
from vit_jax.optim.optimizers import AdamW, Lion, Sgd
from vit_jax.optim.sam import Gsam, LookSam, Sam
from vit_jax.optim.schedules import Constant, Cosine, Linear
from vit_jax.types import UsageError, UserError

TOTAL = 8


def steps_of(duration):
    return duration.steps(batch_size=10, num_examples=40, total=TOTAL)


def make(cfg, params):
    return build(cfg, jax.eval_shape(lambda: params), roles(params), TOTAL, steps_of)


def descend(cfg, problem, params=None, steps=TOTAL):
    """Parameters after ``steps``, and the optimizer state."""
    params = problem.params if params is None else params
    tx, _ = make(cfg, params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(problem.grad(params), state, params, grad_fn=problem.grad)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


KERNEL = np.repeat([1.0, 0.0, 0.0], [15, 3, 5])
HEAD = np.repeat([1.0, 1.0, 0.0], [15, 3, 5])


def test_adamw_with_everything_on_equals_float64_numpy(problem):
    """SAM, clip, Adam, decay on kernels, multipliers, schedule: in this order."""
    cfg = OptimConfig(
        AdamW(0.8, 0.9, 1e-3),
        lr=0.1,
        schedule=Linear(0.2),
        warmup=Duration(2),
        weight_decay=0.3,
        clip_norm=0.15,
        lr_mult=(("head/.*", 0.5),),
        sam=Sam(0.2),
    )
    w = problem.flat(problem.params)
    m = v = np.zeros_like(w)
    clipped = []
    for t in range(TOTAL):
        g = problem.numpy(w)
        g = problem.numpy(w + 0.2 * g / np.linalg.norm(g))
        clipped.append(np.linalg.norm(g) > 0.15)
        g = g * min(1, 0.15 / np.linalg.norm(g))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        u = m / (1 - 0.8 ** (t + 1)) / (np.sqrt(v / (1 - 0.9 ** (t + 1))) + 1e-3)
        lr = 0.1 * (t / 2 if t < 2 else 1 - 0.8 * (t - 2) / 6)
        w = w - lr * np.where(HEAD, 0.5, 1) * (u + 0.3 * KERNEL * w)
    assert any(clipped)
    np.testing.assert_allclose(problem.flat(descend(cfg, problem)[0]), w, atol=2e-5)


@pytest.mark.parametrize("optimizer", [Sgd(0.9, nesterov=True), Lion()], ids=["sgd", "lion"])
def test_decoupled_decay_by_rules_equals_float64_numpy(optimizer, problem):
    cfg = OptimConfig(
        optimizer,
        lr=0.05,
        schedule=Constant(),
        weight_decay=0.4,
        decay_rules=((".*/kernel", 1.0), ("norm/.*", 0.25), (".*", 0.0)),
        clip_norm=None,
    )
    w = problem.flat(problem.params)
    u = np.zeros_like(w)
    for _ in range(TOTAL):
        g = problem.numpy(w)
        if isinstance(optimizer, Sgd):
            u = 0.9 * u + g
            step = g + 0.9 * u
        else:
            step = np.sign(0.9 * u + 0.1 * g)
            u = 0.99 * u + 0.01 * g
        w = w - 0.05 * (step + 0.4 * np.repeat([1, 0, 0.25], [15, 3, 5]) * w)
    np.testing.assert_allclose(problem.flat(descend(cfg, problem)[0]), w, atol=1e-5)


@pytest.mark.parametrize("freeze", [(), ("stem/bias",)])
def test_adaptive_clipping_equals_float64_numpy(rng, freeze):
    """Unit by unit: outputs of kernels, whole vectors, scalars; the map to classes is left alone."""
    shapes = {"stem": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "block_0": {"kernel": (5, 6), "scale_skip": ()}}
    shapes["head"] = {"kernel": (6, 3), "bias": (3,)}

    def draw(scale):
        leaf = lambda shape: np.asarray(scale * rng.standard_normal(shape), np.float32)  # noqa: E731
        return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))

    params, gradient = draw(1.0), draw(0.2)
    params["block_0"]["scale_skip"] = np.zeros((), np.float32)
    cfg = OptimConfig(Sgd(0.0), lr=1.0, schedule=Constant(), clip_norm=None, agc=0.2, freeze=freeze)
    tx, _ = make(cfg, params)
    updates = jax.device_get(jax.jit(lambda g, w: tx.update(g, tx.init(w), w)[0])(gradient, params))

    def clipped(g, w):
        """``g_i * min(1, 0.2 max(|w_i|, 0.001) / |g_i|)`` for every column i."""
        g, w = (np.asarray(x, np.float64).reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in (g, w))
        most = 0.2 * np.maximum(np.linalg.norm(w, axis=0), 1e-3)
        return g * np.minimum(1, most / np.linalg.norm(g, axis=0))

    for name, part in gradient.items():
        for key, g in part.items():
            want = np.asarray(g) if name == "head" else clipped(g, params[name][key]).reshape(g.shape)
            want = 0 * want if f"{name}/{key}" in freeze else want
            np.testing.assert_allclose(updates[name][key], -want, rtol=1e-5, err_msg=f"{name}/{key}")
    columns = np.linalg.norm(updates["block_0"]["kernel"], axis=0) < np.linalg.norm(
        gradient["block_0"]["kernel"], axis=0
    )
    assert columns.any() and not columns.all() and abs(updates["block_0"]["scale_skip"]) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("optimizer", "sam"), [*zip(OPTIMIZERS, [None, "sam", "gsam(m=4)", "looksam(m=4, every=2)"], strict=True)]
)
def test_frozen_parameters_stay_and_have_no_state(optimizer, sam, problem):
    fields = {"optimizer": optimizer, "freeze": "head/kernel", "sam": sam, "weight_decay": 0.1, "lr": 0.01}
    cfg = config.parse(OptimConfig, fields)
    assert trainable(cfg, problem.params)["head"] == {"kernel": False, "bias": True}
    params, state = descend(cfg, problem, steps=3)
    np.testing.assert_array_equal(params["head"]["kernel"], problem.params["head"]["kernel"])
    assert np.abs(params["head"]["bias"] - problem.params["head"]["bias"]).max() > 1e-4
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (3,) in shapes
    assert (5, 3) not in shapes


def test_frozen_parameters_are_not_perturbed_and_not_in_the_norm(problem):
    cfg = OptimConfig(Sgd(0.0), lr=0.1, schedule=Constant(), clip_norm=0.2, freeze=("head/kernel",), sam=Sam(0.5, m=6))
    w = problem.flat(problem.params)
    for _ in range(TOTAL):
        total = 0
        for grad, weight in problem.numpy.groups(6):
            g = (1 - KERNEL) * grad(w)
            total += weight * (1 - KERNEL) * grad(w + 0.5 * g / np.linalg.norm(g))
        w = w - 0.1 * total * min(1, 0.2 / np.linalg.norm(total))
    np.testing.assert_allclose(problem.flat(descend(cfg, problem)[0]), w, atol=1e-5)


def test_gsam_is_told_the_real_learning_rate(problem):
    """The radius is ``rho_max`` at the peak and ``rho_min`` at the end, and stays there in the warm-up."""
    cfg = OptimConfig(Sgd(0.0), lr=0.1, schedule=Linear(0.5), warmup=Duration(4), clip_norm=None, sam=Gsam(0.4, 0.1))
    tx, lr = make(cfg, problem.params)

    def radii(tx, steps):
        """How far from the parameters each step takes its gradient."""

        @jax.jit
        def step(state):
            seen = []
            record = lambda p: (seen.append(p), problem.grad(p))[1]  # noqa: E731
            _, state = tx.update(problem.grad(problem.params), state, problem.params, grad_fn=record)
            return state, seen

        state, found = jax.jit(tx.init)(problem.params), []
        for _ in range(steps):
            state, (seen,) = step(state)
            found.append(np.linalg.norm(problem.flat(seen) - problem.flat(problem.params)))
        return found

    rates = np.array([lr(t) for t in range(TOTAL + 1)])
    np.testing.assert_allclose(rates, [0, 0.025, 0.05, 0.075, 0.1, 0.0875, 0.075, 0.0625, 0.05], rtol=1e-6)
    np.testing.assert_allclose(radii(tx, TOTAL + 1), 0.1 + 0.3 * np.clip((rates - 0.05) / 0.05, 0, 1), rtol=1e-4)
    constant, _ = make(OptimConfig(lr=0.7, schedule=Constant(), sam=Gsam(0.4, 0.1)), problem.params)
    np.testing.assert_allclose(radii(constant, 1), [0.4], rtol=1e-4)


@pytest.mark.parametrize(("optimizer", "sam"), [*zip(OPTIMIZERS, SAM, strict=True)])
def test_zero_gradients_stay_finite(optimizer, sam, problem):
    problem.grad.y = jnp.zeros_like(problem.grad.y)
    params, state = descend(config.parse(OptimConfig, {"optimizer": optimizer, "sam": sam}), problem, steps=2)
    np.testing.assert_array_equal(problem.flat(params), problem.flat(problem.params))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "sam",
    [
        pytest.param(Gsam(0.3, 0.1, m=4), id="gsam"),
        pytest.param(LookSam(0.3, every=2), id="looksam", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(sam, problem):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: E731
    wide = {"head": {"kernel": (5, 4), "bias": (4,)}, "norm": {"scale": (5,)}}
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda s: jnp.asarray(1 + rng.normal(size=s), jnp.float32), wide, is_leaf=lambda s: isinstance(s, tuple)
    )
    problem.grad.y = jnp.eye(4, dtype=jnp.float32)[jnp.arange(12) % 4]
    cfg = OptimConfig(lr=0.02, weight_decay=0.1, freeze=("head/bias",), sam=sam)
    alone, _ = descend(cfg, problem, params, steps=4)
    spread = {
        "head": {"kernel": put(params["head"]["kernel"], None, "b"), "bias": put(params["head"]["bias"], "a")},
        "norm": {"scale": put(params["norm"]["scale"])},
    }
    problem.grad.x, problem.grad.y = put(problem.grad.x, "a"), put(problem.grad.y, "a")
    problem.grad.mask = put(problem.grad.mask, "a")
    together, _ = descend(cfg, problem, spread, steps=4)
    assert len(together["head"]["kernel"].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, together)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_ti16", {"pool": "map", "registers": 2, "layer_scale": 0.1}),
        ("mixer_s16", {}),
        ("vit_r26_s32", {"pre_logits": 8}),
        ("vit_ti16", {"qkv_linear": "monarch(2)", "out_linear": "low_rank(4)", "mlp_linear": "block_diagonal(4)"}),
        ("m2_vit_ti16", {}),
    ],
)
def test_the_default_rules_cover_every_model(name, fields):
    model = models.create(name, num_classes=3, depth=2, **fields)
    params = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]))
    cfg = OptimConfig(weight_decay=0.1, layer_decay=0.5, lr_mult=(("head/.*", 10.0),))
    decay, lr = (factors(cfg, params, model.roles(params)) for factors in (decay_factors, lr_factors))
    assert decay["head"] == {"kernel": 1, "bias": 0}
    assert lr["head"] == {"kernel": 10, "bias": 10}
    assert lr["patch"] == {"kernel": 0.125, "bias": 0.125}
    assert set(jax.tree.leaves(lr["encoder"]["block_1"])) == {0.5}
    for factor, shape in zip(jax.tree.leaves(decay), jax.tree.leaves(params), strict=True):
        assert factor == 0 or len(shape.shape) >= 2
    block = decay["encoder"]["block_0"]
    weights = [v for k, v in jax.tree_util.tree_leaves_with_path(block) if "kernel" in jax.tree_util.keystr(k[-1:])]
    filters = jax.tree.leaves(block.get("mixer", {}).get("forward"))
    assert weights.count(1) == len(weights) - 6 * bool(filters) * 2 and set(filters) <= {0}


def test_multipliers_scale_decay_and_step_alike(problem):
    base = {"lr": 0.01, "weight_decay": 0.5, "schedule": "constant"}
    one, _ = descend(config.parse(OptimConfig, base), problem, steps=1)
    two, _ = descend(config.parse(OptimConfig, {**base, "lr_mult": (("head/.*", 2.0), (".*", 0.5))}), problem, steps=1)
    start = problem.flat(problem.params)
    np.testing.assert_allclose(
        problem.flat(two) - start, (problem.flat(one) - start) * np.where(HEAD, 2, 0.5), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"optimizer": "adam"}, UsageError, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, UsageError, "did you mean 'cosine'"),
        ({"sam": "gsm"}, UsageError, "did you mean 'gsam'"),
        ({"lr": -1.0}, UserError, "lr=-1.0 is not allowed; give a positive number"),
        ({"weight_decay": -0.1}, UserError, "weight_decay=-0.1"),
        ({"clip_norm": 0.0}, UserError, "clip_norm=0.0"),
        ({"layer_decay": 1.5}, UserError, "layer_decay=1.5"),
        ({"lr_mult": (("head/.*", 0.0),)}, UserError, "lr_mult\\[0\\]\\[1\\]=0.0"),
        ({"decay_rules": (("head/.*", -1.0),)}, UserError, "decay_rules\\[0\\]\\[1\\]=-1.0"),
        ({"warmup": "9 steps"}, UserError, "warm-up of 9 steps is longer than the training of 8"),
        ({"freeze": "haed/kernel"}, UserError, "freeze pattern 'haed/kernel' .* nearest: 'head/kernel'"),
        ({"freeze": ".*"}, UserError, "freezes every parameter"),
        ({"lr_mult": (("norm", 2.0),)}, UserError, "lr_mult pattern 'norm' matches no"),
        ({"decay_rules": (("haed/.*", 1.0),)}, UserError, "decay_rules pattern 'haed/"),
        ({"decay_rules": (("head/.*", 1.0),), "weight_decay": 0.1}, UserError, "covers parameter 'norm/scale'"),
        ({"layer_decay": 0.5}, UserError, "this model has none; use lr_mult"),
    ],
)
def test_a_mistake_is_a_sentence(fields, error, words, problem):
    with pytest.raises(error, match=words):
        make(config.parse(OptimConfig, fields), problem.params)


def test_defaults_and_text_forms_parse():
    cfg = config.parse(
        OptimConfig, {"optimizer": "adamw(b2=0.95, mu_dtype='bfloat16')", "sam": {"name": "sam", "m": 8}}
    )
    assert cfg == OptimConfig(AdamW(b2=0.95, mu_dtype="bfloat16"), sam=Sam(m=8))
    assert cfg.schedule == Cosine()
    assert hash(cfg) == hash(OptimConfig(AdamW(b2=0.95, mu_dtype="bfloat16"), sam=Sam(m=8)))


@pytest.mark.parametrize("freeze", [(), ("norm/.*",)])
def test_bounds_hold_after_every_update_and_bind_nothing_else(problem, freeze):
    """Put back, not held: a parameter that the gradient drives inside again moves at once."""
    free = OptimConfig(Sgd(), lr=0.5, schedule=Constant(), clip_norm=None, freeze=freeze)
    bound = dataclasses.replace(free, bounds=(("head/bias", -0.05, 0.02),))
    one, _ = descend(free, problem, steps=1)
    clipped, _ = descend(bound, problem, steps=1)
    bias = np.asarray(one["head"]["bias"])
    assert bias.min() < -0.05 or bias.max() > 0.02
    np.testing.assert_allclose(clipped["head"]["bias"], np.clip(bias, -0.05, 0.02), atol=1e-7)
    np.testing.assert_array_equal(clipped["head"]["kernel"], one["head"]["kernel"])
    after, _ = descend(bound, problem, steps=TOTAL)
    assert np.min(after["head"]["bias"]) >= -0.05 - 1e-7 and np.max(after["head"]["bias"]) <= 0.02 + 1e-7
    inside, _ = descend(dataclasses.replace(bound, bounds=(("head/bias", -1e3, 1e3),)), problem, steps=TOTAL)
    same, _ = descend(free, problem, steps=TOTAL)
    np.testing.assert_allclose(inside["head"]["bias"], same["head"]["bias"], atol=1e-6)
