"""Block-sparse maps: their dense maps, initialisation, projection, and the mask that magnitude keeps."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.linear.spec_contract import check_layer, check_no_bias, check_variance, initialise
from vit_jax import config
from vit_jax.kernels.block_sparse import patterns
from vit_jax.kernels.block_sparse.magnitude import blocks_of
from vit_jax.layers.linear import specs, xavier_uniform_parts
from vit_jax.layers.linear.block_sparse import BlockSparse
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.models.vit import ViT
from vit_jax.types import UserError

SPECS = {
    "butterfly": BlockSparse(0.5, block=4),
    "butterfly and low rank": BlockSparse(0.25, block=4, rank=3),
    "random": BlockSparse(0.3, "random", 8, seed=7),
    "magnitude": BlockSparse(0.5, "magnitude", 4),
}
named = pytest.mark.parametrize("name", SPECS)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in SPECS), ("butterfly and low rank", "bfloat16")]
)
def test_layer_is_its_dense_map(rng, name, dtype):
    check_layer(SPECS[name], rng, (2, 3, 16), 24, dtype)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["butterfly and low rank", "magnitude"])
def test_without_a_bias(name):
    check_no_bias(SPECS[name], 24, 16)


def outside(spec, inputs, features):
    """Where a fixed mask has nothing, one weight after the other."""
    n, b = inputs // spec.block, spec.block
    per = max(1, round(spec.density * n))
    pattern = getattr(patterns, spec.pattern)(n, features // b, per, *([spec.seed] if spec.pattern == "random" else []))
    return np.array([[i // b not in pattern[o // b] for o in range(features)] for i in range(inputs)])


@pytest.mark.first(2)
@named
def test_blocks_lie_where_the_mask_says_and_come_back(rng, name):
    spec = SPECS[name]
    _, params = initialise(spec, 16, 24)
    if not spec.rank:
        kernel, bias = spec.to_dense(params)
        for leaf, value in spec.from_dense(kernel, bias).items():
            np.testing.assert_array_equal(value, params[leaf])
    if spec.pattern == "magnitude":
        return
    inner = {k: v * (0.0 if k == "kernel_1" else 1.0) for k, v in params.items()}
    np.testing.assert_array_equal(np.asarray(spec.to_dense(inner)[0]) == 0, outside(spec, 16, 24))


def test_the_leaf_tells_the_pattern():
    shapes = {name: {k: v.shape for k, v in initialise(spec, 32, 48)[1].items()} for name, spec in SPECS.items()}
    assert shapes["butterfly"] == {"kernel_butterfly_8": (4, 4, 48), "bias": (48,)}
    low = {"kernel_1": (32, 3), "kernel_2": (3, 48)}
    assert shapes["butterfly and low rank"] == {"kernel_butterfly_8": (2, 4, 48), "bias": (48,), **low}
    assert shapes["random"] == {"kernel_random_4_7": (1, 8, 48), "bias": (48,)}
    assert shapes["magnitude"] == {"kernel": (32, 48), "bias": (48,)}
    with pytest.raises(UserError, match="kernel_random_4_7, bias are not of pattern='butterfly'"):
        BlockSparse(block=8).to_dense({"kernel_random_4_7": np.zeros((1, 8, 48)), "bias": np.zeros(48)})
    with pytest.raises(UserError, match="not of pattern='random'"):
        BlockSparse(0.3, "random", 8, seed=6).to_dense({"kernel_random_4_7": np.zeros((1, 8, 48))})
    with pytest.raises(UserError, match="kernel are not of pattern='butterfly'"):
        BlockSparse(block=8).to_dense({"kernel": np.zeros((32, 48))})


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("spec", "init"),
    [
        (BlockSparse(0.5, block=4), xavier_uniform_parts(3)),
        (BlockSparse(0.25, block=4, rank=4), nn.initializers.xavier_uniform()),
        (BlockSparse(0.4, "random", 4), nn.initializers.normal(0.02)),
        (BlockSparse(0.25, "magnitude", 4), nn.initializers.lecun_normal()),
    ],
)
def test_outputs_start_with_the_variance_of_the_dense_map(spec, init):
    check_variance(spec, 16, 24, init)


def test_both_parts_have_half_of_the_variance():
    _, params = initialise(BlockSparse(0.25, rank=32), 512, 512)
    blocks = np.asarray(
        BlockSparse().to_dense({k: v for k, v in params.items() if k not in ("kernel_1", "kernel_2")})[0]
    )
    low = np.asarray(LowRank(32).to_dense(params)[0])
    want = 512 * 512 * (2 / 1024) / 2
    assert abs(np.sum(blocks**2) / want - 1) < 0.02 and abs(np.sum(low**2) / want - 1) < 0.05


def test_magnitude_starts_from_the_dense_draw_pruned():
    key, init = jax.random.key(2), nn.initializers.lecun_normal()
    layer = BlockSparse(0.5, "magnitude", 4)(12, name="map", kernel_init=lambda _, *rest: init(key, *rest))
    kernel = np.asarray(nn.meta.unbox(jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 16))))["params"]["kernel"])
    dense = np.asarray(init(key, (16, 12)))
    for j in range(0, 12, 4):
        norms = [np.linalg.norm(dense[i : i + 4, j : j + 4]) for i in range(0, 16, 4)]
        scale = np.linalg.norm(dense[:, j : j + 4]) / np.linalg.norm(sorted(norms)[2:])
        for i in range(4):
            keep = norms[i] >= sorted(norms)[2]
            want = dense[4 * i : 4 * i + 4, j : j + 4] * (scale if keep else 0)
            np.testing.assert_allclose(kernel[4 * i : 4 * i + 4, j : j + 4], want, rtol=1e-5)
    zeros = BlockSparse(0.5, "magnitude", 4)(12, name="map", kernel_init=nn.initializers.zeros)
    assert not np.any(nn.meta.unbox(jax.jit(zeros.init)(jax.random.key(0), jnp.ones((1, 16))))["params"]["kernel"])


def test_magnitude_is_the_best_balanced_mask(rng):
    kernel = rng.standard_normal((12, 6)).astype(np.float32)
    spec = BlockSparse(0.5, "magnitude", 3)
    got = np.asarray(spec.from_dense(kernel, None)["kernel"])
    best = 0.0
    for columns in itertools.product(itertools.combinations(range(4), 2), repeat=2):
        mask = np.array([[i // 3 in columns[o // 3] for o in range(6)] for i in range(12)])
        best = max(best, float(np.sum(np.where(mask, kernel, 0) ** 2)))
    np.testing.assert_allclose(np.sum(got**2), best, rtol=1e-6)
    np.testing.assert_array_equal(got[got != 0], kernel[got != 0])


def test_the_projection_is_the_nearest_of_the_mask(rng):
    kernel = rng.standard_normal((16, 24)).astype(np.float32)
    for name in ("butterfly", "random"):
        spec = SPECS[name]
        got = np.asarray(spec.to_dense(spec.from_dense(kernel, None))[0])
        np.testing.assert_array_equal(got, np.where(outside(spec, 16, 24), 0, kernel))


def test_the_low_rank_part_takes_what_blocks_leave(rng):
    spec = BlockSparse(0.25, block=4, rank=3)
    kernel = (rng.standard_normal((32, 3)) @ rng.standard_normal((3, 24)) + rng.standard_normal((32, 24))).astype(
        "float32"
    )
    params = spec.from_dense(kernel, None)
    got = np.asarray(spec.to_dense(params)[0], np.float64)
    hidden = outside(spec, 32, 24)
    np.testing.assert_allclose(got[~hidden], kernel[~hidden], atol=1e-5)  # given the rest, the blocks are exact
    u, d, v = np.linalg.svd(np.where(hidden, kernel, 0).astype(np.float64))
    once = np.linalg.norm(np.where(hidden, kernel - (u[:, :3] * d[:3]) @ v[:3], 0))
    assert np.linalg.norm(got - kernel) < 0.97 * once  # going back and forth pays
    exact = np.where(hidden, 0, kernel)
    np.testing.assert_allclose(spec.to_dense(spec.from_dense(exact, None))[0], exact, atol=1e-6)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_zero_blocks_stay_zero_and_the_others_learn(rng, implementation):
    spec = BlockSparse(0.5, "magnitude", 4, implementation=implementation)
    layer, params = initialise(spec, 16, 8)
    kernel = params["kernel"] = params["kernel"].at[4:, 0:4].set(0.0).at[0, 0].set(1.0)  # fewer blocks than are kept
    alive = np.kron(np.asarray(blocks_of(kernel, 4)).any((1, 3)), np.ones((4, 4)))
    x, g = rng.standard_normal((5, 16)).astype("float32"), rng.standard_normal((5, 8)).astype("float32")
    d = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) * g)))(params)["kernel"]
    np.testing.assert_allclose(d, alive * (x.T @ g), atol=1e-5)


def test_a_diverged_kernel_shows(rng):
    spec = BlockSparse(0.5, "magnitude", 4)
    kernel = rng.standard_normal((16, 8)).astype("float32")
    kernel[1, 1] = np.nan
    assert np.isnan(spec.to_dense({"kernel": kernel})[0]).sum() == 1


@pytest.mark.first(1)
@pytest.mark.parametrize("pattern", ["block=8, rank=2", "pattern='magnitude', block=8"])
def test_a_vit_trains_a_step(rng, pattern):
    text = f"block_sparse(0.5, {pattern})"
    maps = dict.fromkeys(("qkv_linear", "mlp_linear"), config.parse(specs.Spec, text))
    model = ViT(patch=8, width=16, depth=1, heads=2, mlp_dim=32, num_classes=5, **maps)
    image = jnp.asarray(rng.random((2, 16, 16, 3)), jnp.float32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), image))["params"]

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jnp.sum(jnp.square(model.apply({"params": p}, image) - 1.0)))(params)
        return grads, jax.tree.map(lambda p, g: 0.99 * p - 0.1 * g, params, grads)

    grads, after = step(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    flat = {jax.tree_util.keystr(path): np.asarray(v) for path, v in jax.tree_util.tree_leaves_with_path(params)}
    changed = {jax.tree_util.keystr(path): np.asarray(v) for path, v in jax.tree_util.tree_leaves_with_path(after)}
    kernels = [path for path in flat if "block" in path and "mlp_in" in path and "kernel" in path]
    assert len(kernels) == (1 if "magnitude" in text else 3)
    for path in kernels:
        np.testing.assert_array_equal(flat[path] == 0, changed[path] == 0)
        assert np.all((flat[path] != changed[path]) == (flat[path] != 0))
        assert np.mean(flat[path] == 0) == (0.5 if "magnitude" in text else 0.0)


def test_values_and_sentences():
    assert config.parse(specs.Spec, "block_sparse(density=0.25)") == config.parse(specs.Spec, "block_sparse")
    assert config.parse(specs.Spec, "block_sparse") == BlockSparse()
    for kwargs, sentence in [
        ({"density": 0.0}, "density=0.0 is not allowed; give a number in \\(0, 1\\]"),
        ({"density": 1.5}, "density=1.5 is not allowed"),
        ({"pattern": "strided"}, "pattern='strided' is not allowed; give one of butterfly, random, magnitude"),
        ({"block": 0}, "block=0 is not allowed"),
        ({"rank": -1}, "rank=-1"),
        ({"seed": -1, "pattern": "random"}, "seed=-1"),
        ({"seed": 1}, "seed=1 means nothing to pattern='butterfly'"),
        ({"pattern": "magnitude", "rank": 2}, "rank=2 goes with fixed patterns only"),
    ]:
        with pytest.raises(UserError, match=sentence):
            BlockSparse(**kwargs)
    with pytest.raises(
        UserError, match="block=32 does not divide the map 48 -> 96; blocks that would fit are 8, 12, 16, 24, 48"
    ):
        initialise(BlockSparse(), 48, 96)
    with pytest.raises(UserError, match="block=32 does not divide the map 64 -> 10; blocks that would fit are 2"):
        BlockSparse().from_dense(np.zeros((64, 10)), None)
    with pytest.raises(UserError, match="rank=20 is more than a map 16 -> 24 can have; use at most 16"):
        initialise(BlockSparse(block=4, rank=20), 16, 24)
    with pytest.raises(UserError, match="rank=20 is more"):
        BlockSparse(block=4, rank=20).from_dense(np.zeros((16, 24)), None)
