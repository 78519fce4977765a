"""HorNet's recursive gated convolutions and global filters against NumPy in float64, and the published sizes."""

from __future__ import annotations

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.test_conv import reference as depthwise
from vit_jax import architectures, models
from vit_jax.layers.conv import DepthwiseConv
from vit_jax.models.hornet import GlobalLocalFilter, GnConv, filtered
from vit_jax.types import UserError

COUNTS = {
    "hornet_tiny_7x7": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
    "hornet_small_7x7": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_base_7x7": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_large_7x7": 194_542_504,
    "hornet_large_gf": 196_289_512,
}
"""With 1,000 classes, as the published code has them."""


def counted(widths, depths, classes=1000, global_filters=False, pixels=224, patch=4):
    """Patches, halvings, norms and head; a block's MLP, two norms and two scales; its gated convolution."""
    n = (3 * patch**2 + 3) * widths[0] + 2 * widths[-1] + (widths[-1] + 1) * classes
    n += sum(2 * a + 4 * a * b + b for a, b in itertools.pairwise(widths))
    for i, (d, depth) in enumerate(zip(widths, depths, strict=True)):
        steps = [d // 2**j for j in range(i + 2)][::-1]
        q, side = sum(steps), pixels // patch // 2**i
        conv = 4 * q + 9 * q // 2 + q * side * (side // 2 + 1) if global_filters and i > len(depths) - 3 else 50 * q
        ups = sum(a * b + b for a, b in itertools.pairwise(steps))
        n += depth * (8 * d * d + 11 * d + 3 * d * d + 3 * d + conv + ups)
    return n


def size(model, pixels=64):
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(pixels))
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


def test_sizes_are_the_published_ones():
    assert {name: counted(**fields) for name, fields in architectures.HORNET.items()} == COUNTS
    small = {"widths": (8, 16, 32), "depths": (1, 2, 1), "global_filters": True, "patch": 2}
    model = models.create("hornet", **small, orders=(2, 3, 4), num_classes=7, filter_size=56)
    assert size(model) == counted(**small, classes=7, pixels=56)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_whole_models_are_counted_alike(name):
    assert size(models.create(name), 224) == COUNTS[name]


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p, epsilon=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def resized(f, size):
    """Bilinear, corner on corner, of ``f [H, F, D, 2]``: between the two nearest along each axis."""
    for axis, side in enumerate(size):
        at = np.linspace(0, f.shape[axis] - 1, side)
        low = np.minimum(at.astype(int), max(f.shape[axis] - 2, 0))
        high, part = (
            np.minimum(low + 1, f.shape[axis] - 1),
            (at - low).reshape([-1 if a == axis else 1 for a in range(4)]),
        )
        f = np.take(f, low, axis) * (1 - part) + np.take(f, high, axis) * part
    return f


def global_local(x, p):
    """The published GlobalLocalFilter: halves, near and far, interleaved; an orthonormal transform either way."""
    x = norm(x, p["norm_pre"])
    near, far = np.split(x, 2, axis=-1)
    near, (h, w) = depthwise(near, p["conv"]["kernel"]), x.shape[1:3]
    f = resized(p["filter"], (h, w // 2 + 1))
    waves = np.fft.rfft2(far, axes=(1, 2), norm="ortho") * (f[..., 0] + 1j * f[..., 1])
    out = np.empty(x.shape)
    out[..., ::2], out[..., 1::2] = near, np.fft.irfft2(waves, s=(h, w), axes=(1, 2), norm="ortho")
    return norm(out, p["norm_post"])


def gnconv(x, p, order, grid):
    """Equation 3 of the paper, a loop over the steps; ``dims`` as in the published code."""
    d = x.shape[-1]
    dims = [d // 2**i for i in range(order)][::-1]
    fused = linear(x, p["qkv"])
    pwa, abc = fused[..., : dims[0]], fused[..., dims[0] :]
    b, conv = len(x), p["conv"]
    abc = abc.reshape(b, *grid, -1)
    abc = global_local(abc, conv) if "filter" in conv else depthwise(abc, conv["kernel"]) + conv["bias"]
    abc = abc.reshape(b, -1, abc.shape[-1]) / 3
    x = pwa * abc[..., : dims[0]]
    for i in range(1, order):
        start = sum(dims[:i])
        x = linear(x, p[f"up_{i - 1}"]) * abc[..., start : start + dims[i]]
    return linear(x, p["out"])


def drawn(module, rng, x, *grid):
    shapes = nn.unbox(jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *grid), x)["params"])
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.4, jnp.float32), shapes)


@pytest.mark.first(3)
@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("filters", [False, True])
def test_gnconv_equals_the_formula_in_float64(rng, order, filters, grid):
    conv = functools.partial(GlobalLocalFilter, (4, 6)) if filters else functools.partial(DepthwiseConv, 7)
    x, module = jnp.asarray(rng.standard_normal((2, grid[0] * grid[1], 16)), jnp.float32), GnConv(order, conv)
    params = drawn(module, rng, x, grid)
    got = jax.jit(lambda p, x: module.apply({"params": p}, x, grid))(params, x)
    want = gnconv(np.asarray(x, np.float64), wide(params), order, grid)
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_order_one_is_a_gated_convolution(rng):
    """``out(p * conv(q) / 3)``: nothing recursive is left."""
    x, module = rng.standard_normal((2, 12, 6)), GnConv(1, functools.partial(DepthwiseConv, 7))
    params = drawn(module, rng, jnp.asarray(x, jnp.float32), (3, 4))
    assert set(params) == {"qkv", "conv", "out"}
    p, q = np.split(linear(x, wide(params["qkv"])), 2, axis=-1)
    conv = wide(params["conv"])
    q = (depthwise(q.reshape(2, 3, 4, 6), conv["kernel"]) + conv["bias"]).reshape(2, 12, 6)
    got = module.apply({"params": params}, jnp.asarray(x, jnp.float32), (3, 4))
    np.testing.assert_allclose(got, linear(p * q / 3, wide(params["out"])), atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_a_shift_of_the_grid_is_a_shift_behind_a_global_filter(rng, size):
    x = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32)
    stored = jnp.asarray(rng.standard_normal((size[0], size[1] // 2 + 1, 3, 2)), jnp.float32)
    y, moved = (filtered(a, stored) for a in (x, jnp.roll(x, (2, 3), (1, 2))))
    np.testing.assert_allclose(moved, jnp.roll(y, (2, 3), (1, 2)), atol=1e-5)
    assert float(jnp.max(jnp.abs(moved - y))) > 0.1
    ones = jnp.stack([jnp.ones(stored.shape[:3]), jnp.zeros(stored.shape[:3])], -1)
    np.testing.assert_allclose(filtered(x, ones), x, atol=1e-6)
    low = filtered(x.astype(jnp.bfloat16), stored)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low, filtered(x.astype(jnp.bfloat16).astype(jnp.float32), stored), rtol=2**-8, atol=1e-3)


TINY = {"num_classes": 3, "patch": 2, "depths": (1, 2, 1), "widths": (8, 8, 16), "orders": (2, 3, 1)}


@pytest.mark.first(1)
@pytest.mark.parametrize("side", [16, 24])
def test_equals_the_paper_in_float64(rng, run, side):
    """Stages of convolutions and of global filters, those stored for 16 pixels."""
    image = rng.standard_normal((2, side, side, 3))
    model = models.create("hornet", **TINY, global_filters=True, filter_size=16, layer_scale=0.5)
    params = drawn(model, rng, image)
    p, x = wide(params), image

    def patches(x, p):
        (k, _, c, d), (b, h, w, _) = p["kernel"].shape, x.shape
        x = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, -1)
        return x @ p["kernel"].reshape(-1, d) + p["bias"]

    x = norm(patches(x, p["patch"]), p["norm_pre"])
    for i, (depth, order) in enumerate(zip(TINY["depths"], TINY["orders"], strict=True)):
        if i:
            x = patches(norm(x, p[f"stage_{i}_norm"]), p[f"stage_{i}_down"])
        grid, x = x.shape[1:3], x.reshape(2, -1, x.shape[-1])
        for j in range(depth):
            q = p[f"stage_{i}"][f"block_{j}"]
            x = x + q["scale_mixer"] * gnconv(norm(x, q["norm_mixer"]), q["mixer"], order, grid)
            h = linear(norm(x, q["norm_mlp"]), q["mlp"]["mlp_in"])
            h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            x = x + q["scale_mlp"] * linear(h, q["mlp"]["mlp_out"])
        x = x.reshape(2, *grid, -1)
    want = linear(norm(x.mean((1, 2)), p["norm"]), p["head"])
    got = run(model, params, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-5 * max(1, np.abs(want).max()))


def test_one_set_of_parameters_for_any_image_size():
    model = models.create("hornet", **TINY, global_filters=True, filter_size=16)
    shapes = [jax.eval_shape(model.init, jax.random.key(0), *model.inputs(s)) for s in (16, 40)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"widths": (6, 8, 16), "orders": (3, 3, 1)},
            "a stage of 6 channels .* of order 3: 4 does not divide .* use 4",
        ),
        ({"widths": (8, 8, 9), "global_filters": True}, "9 channels .* order 1: 2 does not divide them; use 8"),
        ({"orders": (2, 3)}, r"orders=\(2, 3\) is of 2 stages and depths=\(1, 2, 1\) of 3"),
        ({"global_filters": True, "filter_size": 20}, "filter_size 20x20 is not divisible by 8, .* use 16x16"),
    ],
)
def test_mistakes(fields, says):
    with pytest.raises(UserError, match=says):
        models.create("hornet", **{**TINY, **fields})
