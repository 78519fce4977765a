"""The BiT stem against Flax's convolution and group norm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.resnet import Bottleneck, GroupNorm, ResNet, StdConv


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (1, 1), (7, 2)])
def test_conv_standardises_its_kernel(rng, size, stride):
    x = jnp.asarray(rng.standard_normal((2, 9, 6, 4)), jnp.float32)
    params = nn.meta.unbox(StdConv(5, size, stride).init(jax.random.key(0), x)["params"])
    kernel = np.asarray(params["kernel"], np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    conv = nn.Conv(5, (size, size), (stride, stride), use_bias=False)
    want = conv.apply({"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, x)
    np.testing.assert_allclose(StdConv(5, size, stride).apply({"params": params}, x), want, atol=1e-4)


def test_group_norm_equals_flax(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 64)) + 2, jnp.float32)
    params = {"scale": jnp.linspace(0, 2, 64), "bias": jnp.linspace(-1, 1, 64)}
    want = nn.GroupNorm(32).apply({"params": params}, x)
    np.testing.assert_allclose(GroupNorm().apply({"params": params}, x), want, atol=1e-5)


def test_bottleneck_starts_as_its_shortcut(rng):
    x = jnp.abs(jnp.asarray(rng.standard_normal((1, 4, 4, 128)), jnp.float32))
    boxed = jax.jit(Bottleneck(32).init)(jax.random.key(0), x)
    assert "conv_shortcut" not in boxed["params"]
    np.testing.assert_allclose(jax.jit(Bottleneck(32).apply)(boxed, x), x, atol=1e-6)


@pytest.mark.parametrize(("stages", "side", "channels"), [((), 8, 32), ((1,), 8, 128), ((1, 2), 4, 256)])
def test_stem_strides_and_channels(stages, side, channels):
    stem, x = ResNet(stages, width=32, dtype="bfloat16"), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(stem.init, jax.random.key(0), x)
    out = jax.eval_shape(stem.apply, shapes, x)
    assert out.shape == (1, side, side, channels) and out.dtype == jnp.bfloat16


def test_stem_is_differentiable_in_bfloat16(rng):
    stem = ResNet((), width=32, dtype="bfloat16")
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 3)), jnp.float32)
    params = nn.meta.unbox(jax.jit(stem.init)(jax.random.key(0), x)["params"])

    def loss(p, module):
        return jnp.sum(jnp.sin(module.apply({"params": p}, x).astype(jnp.float32)))

    low, wide = (jax.jit(jax.grad(loss), static_argnums=1)(params, s) for s in (stem, stem.clone(dtype="float32")))
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(wide), strict=True):
        assert a.dtype == jnp.float32
        a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
        if np.linalg.norm(b) > 1e-3:
            assert a @ b > 0.97 * np.linalg.norm(a) * np.linalg.norm(b)
