"""The step: gradients, accumulation, groups, EMA, and the same curve on every mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding
from vit_jax.objectives import Classify
from vit_jax.train.step import GradFn, check_batch, compiler_options
from vit_jax.types import UsageError


def curve(setup, steps):
    """Losses of the first steps, and the final parameters."""
    losses = []
    with jax.set_mesh(setup.mesh):
        state = setup.init()
        batches = setup.train_batches(0)
        for _ in range(steps):
            state, metrics = setup.step(state, sharding.put(next(batches), setup.mesh))
            losses.append(float(metrics["loss"]))
        batches.close()
    return np.array(losses), jax.device_get(state)


WIDE = {"width": 32, "depth": 1, "heads": 4, "mlp_dim": 512}
MESHES = {f"{r}x{f}x{t}": {"replica": r, "fsdp": f, "tensor": t} for r, f, t in [(8, 1, 1), (1, 8, 1), (2, 2, 2)]}


@pytest.mark.parametrize(
    ("sam", "mesh"),
    [
        pytest.param(sam, mesh, marks=[] if (sam, mesh) == ("gsam(m=8)", "2x2x2") else pytest.mark.slow)
        for sam in (None, "sam(rho=0.1)", "gsam(m=8)")
        for mesh in MESHES
    ],
)
def test_meshes_agree(tiny, one_device, sam, mesh):
    """replica x fsdp x tensor in {8x1x1, 1x8x1, 2x2x2} give the single device's six steps to 1e-5."""
    raw = tiny(optim={"sam": sam}, model=WIDE)
    single, _ = curve(one_device(raw), 6)
    assert single.min() < single[0]
    losses, _ = curve(one_device({**raw, "mesh": MESHES[mesh]}, n=8), 6)
    np.testing.assert_allclose(losses, single, atol=1e-5)


def test_parameters_and_their_moments_are_really_sharded(tiny, one_device):
    setup = one_device({**tiny(model=WIDE), "mesh": MESHES["1x8x1"]}, n=8)
    shards = [s.spec for s in jax.tree.leaves(setup.shardings.params)]
    assert any("fsdp" in spec for spec in shards)
    moments = [s.spec for s in jax.tree.leaves(setup.shardings.opt_state)]
    assert sum("fsdp" in s for s in moments) == 2 * sum("fsdp" in s for s in shards)  # mu and nu


def test_accumulation_changes_nothing(tiny, one_device):
    # plain gradient descent: Adam would blow up the rounding of gradients that are zero, as those of key biases
    raw = tiny(model={"dropout": 0.0}, optim={"optimizer": "sgd", "lr": 0.3})
    whole, a = curve(one_device(raw), 5)
    parts, b = curve(one_device({**raw, "accumulate": 4}), 5)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    chex.assert_trees_all_close(a.params, b.params, atol=1e-5)


@pytest.mark.thorough
def test_ema_is_the_recursion(tiny, one_device):
    setup = one_device(tiny())
    with jax.set_mesh(setup.mesh):
        state = setup.init()
        average = jax.device_get(state.params)
        batches = setup.train_batches(0)
        for _ in range(3):
            state, _ = setup.step(state, sharding.put(next(batches), setup.mesh))
            average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, jax.device_get(state.params))
        batches.close()
    chex.assert_trees_all_close(jax.device_get(state.ema), average, atol=1e-6)
    assert state.eval_params is state.ema


def test_metrics_say_what_happened(tiny, one_device):
    setup = one_device(tiny())
    with jax.set_mesh(setup.mesh):
        batches = setup.train_batches(0)
        state, metrics = setup.step(setup.init(), sharding.put(next(batches), setup.mesh))
        batches.close()
    assert {"loss", "lr", "grad_norm", "update_norm", "accuracy", "finite"} <= set(metrics)
    assert metrics["finite"].shape == (len(jax.tree.leaves(state.params)),)
    assert metrics["lr"] == setup.schedule(0)
    assert int(state.step) == 1


def linear(params, x, *, train, rngs):
    return jnp.einsum("bi,ic->bc", x, params)


def test_groups_follow_their_definition(rng):
    """Mean over groups {i, i+G, ...} of a nonlinear function of each group's gradient, weighted by valid examples."""
    batch = {
        "image": rng.normal(size=(12, 3)).astype(np.float32),
        "label": rng.integers(0, 4, 12).astype(np.int32),
        "mask": np.array([1] * 9 + [0, 1, 1], bool),
    }
    params = rng.normal(size=(3, 4)).astype(np.float32)
    grad_fn = GradFn(Classify(), linear, batch, {"dropout": jax.random.key(0)}, 1)
    found = grad_fn.over_groups(lambda grad: jnp.square(grad(params)), m=4)

    total, weight = np.zeros((3, 4)), 0
    for i in range(3):
        x, y, m = (np.asarray(batch[k][i::3], np.float64) for k in ("image", "label", "mask"))
        z = np.exp(x @ params)
        residual = z / z.sum(1, keepdims=True) - np.eye(4)[y.astype(int)]
        total += m.sum() * (x.T @ (m[:, None] * residual) / m.sum()) ** 2
        weight += m.sum()
    np.testing.assert_allclose(found, total / weight, rtol=1e-5)


def test_groups_work_with_accumulation(rng):
    batch = {
        "image": rng.normal(size=(16, 3)).astype(np.float32),
        "label": rng.integers(0, 4, 16).astype(np.int32),
        "mask": np.ones(16, bool),
    }
    params = rng.normal(size=(3, 4)).astype(np.float32)
    body = lambda grad: jnp.square(grad(params))  # noqa: E731
    one = GradFn(Classify(), linear, batch, {"dropout": jax.random.key(0)}, 1).over_groups(body, 8)
    many = GradFn(Classify(), linear, batch, {"dropout": jax.random.key(0)}, 8).over_groups(body, 8)
    np.testing.assert_allclose(one, many, rtol=1e-5)


def mesh(n=8):
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:n])


@pytest.mark.parametrize(
    ("size", "accumulate", "group", "text"),
    [
        (12, 1, None, "batch_size=12 is not divisible by 8 (the mesh's replica x fsdp); use 16."),
        (16, 4, None, "batch_size=16 is not divisible by 32 (accumulate x devices); use 32."),
        (64, 1, 24, "batch_size=64 is not divisible by 24 (the SAM group size m); use 72."),
        (64, 1, 4, "batch_size=64 is not divisible by 128 (SAM groups x their micro-batches x devices); use 128."),
    ],
)
def test_indivisible_batches(size, accumulate, group, text):
    with pytest.raises(UsageError) as e:
        check_batch(size, accumulate, group, mesh())
    assert str(e.value) == text


def test_divisible_batches():
    check_batch(64, 4, 16, mesh())
    check_batch(7, 7, 7, mesh(1))


def test_barriers_hold_where_they_are_needed():
    """What they save, ``bench memory`` tells."""
    kept = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    assert compiler_options(mesh(1), models.create("vit", remat="full")) == kept
    assert compiler_options(mesh(1), models.create("vit", scan=True)) == kept
    assert compiler_options(mesh(1), models.create("vit")) == {}
