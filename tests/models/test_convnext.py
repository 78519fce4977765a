"""ConvNeXt against NumPy in float64, and the published sizes."""

from __future__ import annotations

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.outputs import both
from tests.layers.test_conv import reference as depthwise
from vit_jax import architectures, models

COUNTS = {
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_tiny_hnf": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
    "convnext_xxlarge": 846_471_016,
}
"""With 1,000 classes, as timm has them; those of the paper are tiny to xlarge."""


def counted(widths, depths, classes=1000, **_):
    """A block has 8 d^2 + 58 d parameters: an MLP of ratio 4, 7x7 weights and a bias, a norm, a scale."""
    n = 51 * widths[0] + 2 * widths[-1] + (widths[-1] + 1) * classes
    n += sum(depth * (8 * d * d + 58 * d) for d, depth in zip(widths, depths, strict=True))
    return n + sum(2 * a + 4 * a * b + b for a, b in itertools.pairwise(widths))


def size(model):
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(64))
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


def test_sizes_are_the_published_ones():
    assert {name: counted(**fields) for name, fields in architectures.CONVNEXT.items()} == COUNTS
    small = {"widths": (4, 6, 8, 10), "depths": (1, 2, 1, 1)}
    assert size(models.create("convnext", **small, num_classes=7)) == counted(**small, classes=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_whole_models_are_counted_alike(name, timm):
    theirs = timm.create_model(name, device="meta").parameters()
    assert size(models.create(name)) == COUNTS[name] == sum(p.numel() for p in theirs)


TINY = {"num_classes": 3, "patch": 2, "depths": (1, 2), "widths": (4, 6), "layer_scale": 0.5}


def reference(p, image, epsilon, final_norm):
    """Section 2 of the paper, in float64."""

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]

    def patches(x, p):
        (k, _, c, d), (b, h, w, _) = p["kernel"].shape, x.shape
        x = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, -1)
        return x @ p["kernel"].reshape(-1, d) + p["bias"]

    x = norm(patches(image, p["patch"]), p["norm_pre"])
    for i, depth in enumerate(TINY["depths"]):
        if i:
            x = patches(norm(x, p[f"stage_{i}_norm"]), p[f"stage_{i}_down"])
        for j in range(depth):
            q = p[f"stage_{i}"][f"block_{j}"]
            y = norm(depthwise(x, q["conv"]["kernel"]) + q["conv"]["bias"], q["norm_mlp"])
            h = y @ q["mlp"]["mlp_in"]["kernel"] + q["mlp"]["mlp_in"]["bias"]
            h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            x = x + q["scale_mlp"] * (h @ q["mlp"]["mlp_out"]["kernel"] + q["mlp"]["mlp_out"]["bias"])
    tokens = x.reshape(len(x), -1, x.shape[-1])
    tokens = norm(tokens, p["norm"]) if final_norm else tokens
    pooled = tokens.mean(1) if final_norm else norm(tokens.mean(1), p["norm"])
    return tokens, pooled @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.first(1)
@pytest.mark.parametrize(("epsilon", "final_norm"), [(1e-6, False), (0.3, True)])
def test_equals_the_paper_in_float64(rng, run, epsilon, final_norm):
    image = rng.standard_normal((3, 8, 12, 2))
    model = models.create("convnext", **TINY, norm_epsilon=epsilon, final_norm=final_norm)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)
    tokens, logits = reference(jax.tree.map(lambda a: np.asarray(a, np.float64), params), image, epsilon, final_norm)
    found, got = run(model, params, jnp.asarray(image, jnp.float32), train=False, method=both)
    np.testing.assert_allclose(found.tokens, tokens, atol=2e-5)
    np.testing.assert_allclose(got, logits, atol=2e-5)
