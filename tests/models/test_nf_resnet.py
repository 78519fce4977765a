"""NF-ResNet against NumPy in float64: standardised kernels, variances block by block, the whole, published sizes."""

from __future__ import annotations

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.outputs import both
from vit_jax import architectures, models
from vit_jax.models.nf_resnet import GAMMAS, NFBlock, ScaledConv
from vit_jax.types import UserError

COUNTS = {"nf_resnet26": 15_995_176, "nf_resnet50": 25_557_032, "nf_resnet101": 44_549_160}
"""With 1,000 classes, as timm has them."""


def counted(depths, widths=(256, 512, 1024, 2048), stem_width=64, classes=1000):
    """Convolutions with a bias and a scale; the first block of a stage has a shortcut."""

    def conv(a, b, size=1):
        return size * size * a * b + 2 * b

    def block(a, b):
        return conv(a, b // 4) + conv(b // 4, b // 4, 3) + conv(b // 4, b)

    n = conv(3, stem_width, 7) + (widths[-1] + 1) * classes
    for a, b, depth in zip((stem_width, *widths), widths, depths, strict=False):
        n += conv(a, b) + block(a, b) + (depth - 1) * block(b, b)
    return n


def size(model):
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(32))
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


def test_sizes_are_the_published_ones():
    assert {name: counted(**fields) for name, fields in architectures.NF_RESNET.items()} == COUNTS
    small = {"widths": (8, 16), "depths": (2, 1), "stem_width": 4}
    assert size(models.create("nf_resnet", **small, num_classes=7)) == counted(**small, classes=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_whole_models_are_counted_alike(name, timm):
    theirs = timm.create_model(name, device="meta").parameters()
    assert size(models.create(name)) == COUNTS[name] == sum(p.numel() for p in theirs)


def standardised(p, gamma):
    """Section 4.2, equation 3, in float64; the kernel's constant beside its variance is timm's."""
    w = p["kernel"]
    fan_in = w[..., 0].size
    centred = w - w.mean((0, 1, 2))
    return p["scale"] * gamma * centred / np.sqrt((w.var((0, 1, 2)) + 1e-5) * fan_in)


@pytest.mark.first(1)
@pytest.mark.parametrize(("kernel_size", "channels"), [(1, 48), (3, 7)])
def test_kernels_have_mean_0_and_variance_1_over_fan_in(rng, kernel_size, channels):
    conv = ScaledConv(5, kernel_size, gamma=1.5)
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, 5)) * [1, 2, 0.5, 4, 9] + 0.3
    p = {"kernel": kernel, "scale": np.array([1.0, 1, 1, 2, 1]), "bias": np.zeros(5)}
    low = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), p)
    got = np.asarray(conv.apply({"params": low}, low["kernel"], method="weights"), np.float64)
    fan_in = kernel_size**2 * channels
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-7)
    np.testing.assert_allclose(got.var((0, 1, 2)) * fan_in / 1.5**2, [1, 1, 1, 4, 1], rtol=1e-4)
    np.testing.assert_allclose(got, standardised(p, 1.5), rtol=1e-5, atol=1e-7)


@pytest.mark.first(1)
@pytest.mark.parametrize("activation", GAMMAS)
def test_gamma_makes_the_variance_of_a_gaussian_1(activation):
    x = np.random.default_rng(0).standard_normal(1_000_000)
    y = {"relu": lambda: np.maximum(x, 0), "silu": lambda: x / (1 + np.exp(-x))}.get(
        activation, lambda: np.asarray(jax.nn.gelu(x, approximate=False), np.float64)
    )()
    assert (GAMMAS[activation] * y).std() == pytest.approx(1, abs=0.003)


def test_the_variance_grows_by_alpha_squared_from_block_to_block(rng):
    """1 + k alpha^2 after block k of random weights; the first one's shortcut is a convolution, of variance 1."""
    alpha = 0.7  # branches count: with 0.2 they are lost in the noise of few channels
    fields = {"depths": (3,), "widths": (64,), "stem": "3x3", "stem_width": 48, "alpha": alpha, "num_classes": 0}
    model = models.create("nf_resnet", **fields)
    image = rng.standard_normal((4, 16, 16, 3))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])

    def draw(path, s):
        kind = path[-1].key
        x = rng.standard_normal(s.shape) if kind == "kernel" else np.full(s.shape, float(kind == "scale"))
        return jnp.asarray(
            x / (GAMMAS["relu"] if path[0].key == "stem" else 1), jnp.float32
        )  # images are no activations

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    apply = jax.jit(functools.partial(model.apply, mutable="features"))
    found = apply({"params": params}, jnp.asarray(image, jnp.float32))[1]["features"]["stage_0"]
    inside = [np.asarray(x).reshape(4, 16, 16, -1)[:, 4:-4, 4:-4] for _, x in sorted(found.items())]  # beyond is zero
    np.testing.assert_allclose([x.var() for x in inside], [1 + k * alpha**2 for k in (1, 2, 3)], rtol=0.1)


@pytest.mark.first(1)
@pytest.mark.parametrize("skip_gain", [False, True])
def test_a_block_starts_as_the_identity(rng, skip_gain):
    block = NFBlock(16, (3, 5), 1.3, skip_gain=skip_gain)
    x = jnp.asarray(rng.standard_normal((2, 15, 16)), jnp.float32)
    y, variables = jax.jit(block.init_with_output)(jax.random.key(0), x)
    params = nn.unbox(variables["params"])
    np.testing.assert_array_equal(y, x)
    scale = params["scale_skip"] if skip_gain else params["conv_3"]["scale"]
    assert not np.any(scale) and np.any(params["conv_3"]["scale"]) == skip_gain


def conv(x, kernel, bias, stride=1):
    k, (h, w) = len(kernel), x.shape[1:3]
    wide = np.pad(x, [(0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)])
    rows = [
        [np.tensordot(wide[:, i : i + k, j : j + k], kernel, 3) for j in range(0, w, stride)]
        for i in range(0, h, stride)
    ]
    return np.array(rows).transpose(2, 0, 1, 3) + bias


def pooled(x, k, start, reduce):
    """Of squares of k around or from every second place, of those entries that are there."""
    h, w = x.shape[1:3]
    out = [
        [
            reduce(x[:, max(i - start, 0) : i - start + k, max(j - start, 0) : j - start + k], (1, 2))
            for j in range(0, w, 2)
        ]
        for i in range(0, h, 2)
    ]
    return np.array(out).transpose(2, 0, 1, 3)


FIELDS = {
    "large": {"depths": (1, 2), "widths": (8, 12), "stem_width": 6, "skip_gain": True},
    "small": {"depths": (2, 1), "widths": (8, 12), "stem_width": 8, "stem": "3x3", "activation": "silu", "alpha": 0.4},
}
TINY = {"num_classes": 3}


def reference(p, image, model):
    """Sections 3 and 4 of the paper, in float64."""
    gamma = GAMMAS[model.activation]

    def act(x):
        return np.maximum(x, 0) if model.activation == "relu" else x / (1 + np.exp(-x))

    def scaled(x, p, stride=1):
        return conv(x, standardised(p, gamma), p["bias"], stride)

    large = model.stem == "7x7_pool"
    x = scaled(image, p["stem"], 1 + large)
    x = pooled(x, 3, 1, np.max) if large else x
    sigma = 1.0
    for i, j in itertools.chain(*([(i, j) for j in range(d)] for i, d in enumerate(model.depths))):
        q, first = p[f"stage_{i}"][f"block_{j}"], j == 0 and i > 0
        y = act(x) / sigma
        if "conv_shortcut" in q:
            x = scaled(pooled(y, 2, 0, np.mean) if first else y, q["conv_shortcut"])
        y = scaled(act(scaled(y, q["conv_1"])), q["conv_2"], 1 + first)
        x = x + model.alpha * q.get("scale_skip", 1.0) * scaled(act(y), q["conv_3"])
        sigma = np.sqrt((1 if j == 0 else sigma**2) + model.alpha**2)
    tokens = act(x).reshape(len(x), -1, x.shape[-1])
    return tokens, tokens.mean(1) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("case", rest_slow(FIELDS, "large"))
def test_equals_the_paper_in_float64(rng, run, case):
    """On sides that no stride divides."""
    model = models.create("nf_resnet", **TINY, **FIELDS[case])
    image = rng.standard_normal((2, 13, 10, 3))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)
    tokens, logits = reference(jax.tree.map(lambda a: np.asarray(a, np.float64), params), image, model)
    found, got = run(model, params, jnp.asarray(image, jnp.float32), train=False, method=both)
    np.testing.assert_allclose(found.tokens, tokens, atol=1e-5 * np.abs(tokens).max())
    np.testing.assert_allclose(got, logits, atol=1e-5 * np.abs(logits).max())


def test_roles():
    """Blocks of all stages count, and nothing is without a kind."""
    model = models.create("nf_resnet", **TINY, **FIELDS["large"])
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *model.inputs(16))["params"])
    roles = model.roles(params)
    assert roles["stem"]["kernel"].above == 4 and roles["stem"]["kernel"].part == "stem"
    stage = roles["stage_1"]
    assert [stage[f"block_{j}"]["conv_2"]["kernel"].above for j in (0, 1)] == [2, 1]
    assert stage["block_0"]["scale_skip"].kind == stage["block_0"]["conv_1"]["scale"].kind == "scale"
    assert roles["head"]["kernel"].part == "head" and None not in {r.kind for r in jax.tree.leaves(roles)}


def test_mistakes_are_said():
    with pytest.raises(UserError, match=r"widths=\(8, 12\) is of 2 stages and depths=\(1,\) of 1; give both"):
        models.create("nf_resnet", depths=(1,), widths=(8, 12))
    model = models.create("nf_resnet", **TINY, **FIELDS["large"])
    image = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    with pytest.raises(UserError, match="set scan=False"):
        jax.eval_shape(model.clone(scan=True).apply, params, image)
