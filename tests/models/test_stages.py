"""What models of stages share: sizes, depth and decay of their parameters, use as towers, sentences for odd images."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from vit_jax import models
from vit_jax.objectives.distill import with_blocks
from vit_jax.optim import masks
from vit_jax.types import UserError

TINY = {"num_classes": 3}
CASES = {
    "convnext": {"depths": (1, 2), "widths": (6, 12), "patch": 2},
    "hornet": {"depths": (1, 2), "widths": (8, 16), "orders": (2, 3), "global_filters": True, "filter_size": 16}
    | {"patch": 2},
}
ALL = CASES | {"nf_resnet": {"depths": (1, 2), "widths": (8, 16), "stem_width": 4}}


@functools.cache
def made(name):
    """A model and its parameters, drawn so that every one of them counts."""
    model = models.create(name, **TINY, **ALL[name])
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *model.inputs(16))["params"])
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


@pytest.mark.parametrize("name", CASES)
def test_roles(name):
    """Blocks of all stages count; what halves the grid is as deep as the block behind it."""
    model, params = made(name)
    roles = model.roles(params)
    flat = dict(zip(*map(jax.tree.leaves, (masks.paths(params), roles)), strict=True))
    above = {path.rpartition("/")[0]: role.above for path, role in flat.items()}
    assert above["patch"] == above["norm_pre"] == 4 and flat["patch/kernel"].part == "stem"
    found = [above[f"stage_{i}/block_{j}/mlp/mlp_in"] for i, j in ((0, 0), (1, 0), (1, 1))]
    assert found == [3, 2, 1] and above["stage_1_down"] == above["stage_1_norm"] == 2
    assert flat["norm/scale"].part == flat["head/kernel"].part == "head" and flat["head/kernel"].new
    kinds = {path: role.kind for path, role in flat.items()}
    assert {kinds[path] for path in kinds if path.endswith("kernel")} == {"kernel"}
    assert None not in kinds.values() and kinds["stage_0/block_0/scale_mlp"] == "scale"
    assert [path for path, kind in kinds.items() if kind == "filter"] == [
        path for path in kinds if path.endswith("filter")
    ]
    assert any(kind == "filter" for kind in kinds.values()) == (name == "hornet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_remat_and_scan_do_not_change_what_it_computes(name, rng):
    model, params = made(name)
    image, rngs = jnp.asarray(rng.standard_normal((3, 16, 8, 3)), jnp.float32), {"dropout": jax.random.key(3)}
    stochastic = {"drop_path": 0.5, "dropout": 0.1} if name in CASES else {"drop_path": 0.5}
    model = model.clone(**stochastic)

    def loss(m):
        def run(p):
            return jnp.sum(m.apply({"params": p}, image, train=True, rngs=rngs) ** 2)

        return jax.jit(jax.value_and_grad(run))(params)

    want = loss(model)
    for got in (loss(model.clone(remat="full")), *([loss(model.clone(scan=True))] if name in CASES else [])):
        for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-3, float(jnp.max(jnp.abs(b)))))
    assert np.isfinite(want[0]) and abs(want[0] - loss(model.clone(**dict.fromkeys(stochastic, 0.0)))[0]) > 1e-3


def test_stochastic_depth_grows_over_all_stages(monkeypatch):
    """By a line from 0 at the first block to its rate at the last, whatever stages they are in (as timm's)."""
    seen = []
    monkeypatch.setattr("vit_jax.layers.block.drop_path", lambda x, rate, key: seen.append(float(rate)) or x)
    model = models.create("convnext", depths=(1, 2, 3), widths=(4, 4, 4), patch=1, num_classes=0, drop_path=0.5)
    image = jnp.zeros((1, 4, 4, 3))
    jax.eval_shape(model.init, jax.random.key(0), image)
    jax.eval_shape(
        lambda p: model.apply(p, image, train=True, rngs={"dropout": jax.random.key(0)}),
        nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)),
    )
    np.testing.assert_allclose(seen[-5:], np.linspace(0, 0.5, 6)[1:], atol=1e-6)


def test_blocks_are_told_in_the_order_of_their_depth():
    model, params = made("convnext")
    image = jnp.ones((1, 8, 8, 3))

    def run(params, *xs, **options):
        return model.apply({"params": params}, *xs, **options)

    shapes = jax.eval_shape(lambda p: with_blocks(run, 9, p, image, train=False)[1], params)
    assert [x.shape for x in shapes] == [(1, 16, 6), (1, 4, 12), (1, 4, 12)]


TEXT = {"vocab_size": 20, "length": 6, "end_id": 1, "width": 12, "depth": 1, "heads": 2, "mlp_dim": 16}
PAIR = {"text_tower": TEXT, "embed_dim": 12}
COCA = {"queries": 3, "pool_heads": 2, "decoder": {"depth": 1, "heads": 2, "mlp_dim": 16}}


TOWERS = ALL | {
    "mobilenet": {"stem_width": 4, "widths": (8, 16), "hidden": ((4,), (24, 24)), "kernels": (3, 5)} | {
        "strides": (1, 2), "excite": (False, True), "activations": ("relu", "hard_swish"), "last_width": 16,
        "head_width": None,
    }
}  # fmt: skip


@pytest.mark.parametrize("name", rest_slow(TOWERS, *CASES))
@pytest.mark.parametrize("pair", ["two_tower", "coca"])
def test_towers(name, pair):
    tower = {"name": name, **TOWERS[name], "num_classes": 0}
    more = COCA | {"text_tower": TEXT | {"pool": "cls"}} if pair == "coca" else {}
    model = models.create(pair, image_tower=tower, **{**PAIR, **more})
    out, variables = jax.eval_shape(lambda *x: model.init_with_output(jax.random.key(0), *x), *model.inputs(16))
    assert out.image.shape == (1, 12)
    encoder, params = model.image_encoder(nn.unbox(variables["params"]))
    assert (
        isinstance(encoder, models.ImageModel) and encoder.width == TOWERS[name]["widths"][-1] and "stage_0" in params
    )


@pytest.mark.parametrize(
    ("fields", "size", "says"),
    [
        ({}, 18, r"image size 18x18 is not divisible by 4, the stride of the 2 stages; use 16x16 for example\."),
        ({}, 3, "use 4x4 for example"),
        ({"widths": (4, 8, 16)}, 16, r"widths=\(4, 8, 16\) is of 3 stages and depths=\(1, 2\) of 2; give both"),
        ({"depths": (), "widths": ()}, 16, "give both an entry for each stage"),
    ],
)
def test_mistakes_are_said_before_the_first_step(fields, size, says):
    with pytest.raises(UserError, match=says):
        model = models.create("convnext", **{**TINY, **CASES["convnext"], **fields})
        jax.eval_shape(model.init, jax.random.key(0), *model.inputs(size))
