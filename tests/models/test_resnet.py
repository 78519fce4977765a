"""The BiT stem against Flax's convolution and group norm, and against timm's."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.resnet import NUMERICS, Bottleneck, GroupNorm, ResNet, StdConv
from vit_jax.types import UserError


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (1, 1), (7, 2)])
def test_conv_standardises_its_kernel(rng, size, stride):
    x = jnp.asarray(rng.standard_normal((2, 9, 6, 4)), jnp.float32)
    params = nn.meta.unbox(jax.jit(StdConv(5, size, stride).init)(jax.random.key(0), x)["params"])
    kernel = np.asarray(params["kernel"], np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    conv = nn.Conv(5, (size, size), (stride, stride), use_bias=False)
    want = jax.jit(conv.apply)({"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, x)
    np.testing.assert_allclose(jax.jit(StdConv(5, size, stride).apply)({"params": params}, x), want, atol=1e-4)


@pytest.mark.parametrize(
    ("numerics", "deviation"), [("original", lambda v: v**0.5 + 1e-5), ("timm", lambda v: (v + 1e-8) ** 0.5)]
)
def test_small_kernels_tell_the_numerics_apart(rng, numerics, deviation):
    x = jnp.asarray(rng.standard_normal((1, 5, 5, 4)), jnp.float32)
    kernel = (rng.standard_normal((3, 3, 4, 6)) * 1e-4).astype(np.float32)
    wide = np.asarray(kernel, np.float64)
    wide = (wide - wide.mean((0, 1, 2))) / deviation(wide.var((0, 1, 2)))
    want = jax.jit(nn.Conv(6, (3, 3), use_bias=False).apply)({"params": {"kernel": jnp.asarray(wide, jnp.float32)}}, x)
    got = jax.jit(StdConv(6, 3, numerics=numerics).apply)({"params": {"kernel": jnp.asarray(kernel)}}, x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def to_timm(params, torch):
    """Our stem's parameters as timm names and shapes them."""
    out = {}
    for module, parts in params.items():
        if module.endswith("root"):
            where = {"conv_root": "stem.conv", "norm_root": "stem.norm"}[module]
            out |= {f"{where}.{k}": v for k, v in parts.items()}
            continue
        _, stage, _, unit = module.split("_")
        for name, leaf in parts.items():
            kind, which = name.split("_")
            part = f"downsample.{kind}" if which == "shortcut" else f"{kind}{which}"
            out |= {f"stages.{stage}.blocks.{unit}.{part}.{k}": v for k, v in leaf.items()}
    ends = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    return {
        f"{path}.{ends[end]}": torch.tensor(np.array(v.transpose(3, 2, 0, 1) if end == "kernel" else v))
        for (path, end), v in ((k.rsplit(".", 1), v) for k, v in out.items())
    }


def test_stem_is_timms(rng, torch, timm):
    """Kernels, norms and an image so small that the epsilons count: with the other numerics it is another stem."""
    image = jnp.asarray(rng.standard_normal((2, 50, 44, 3)) * 1e-3, jnp.float32)
    stem = ResNet((1, 2), numerics="timm")
    shapes = nn.meta.unbox(jax.eval_shape(stem.init, jax.random.key(0), image)["params"])

    def draw(path, s):
        size = 10 ** rng.uniform(-5, -2, s.shape[-1]) if path[-1].key == "kernel" else 0.01
        return (rng.standard_normal(s.shape) * size).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    peer = timm.models.vision_transformer_hybrid._resnetv2((1, 2)).eval()
    peer.load_state_dict(to_timm(params, torch))
    with torch.no_grad():
        want = peer(torch.tensor(np.array(image)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got, other = (jax.jit(s.apply)({"params": params}, image) for s in (stem, stem.clone(numerics="original")))
    assert got.shape == want.shape == (2, 7, 6, 512)
    np.testing.assert_allclose(got, want, atol=1e-4 * want.std())
    assert np.abs(other - want).max() > 0.02 * want.std()


def test_numerics_are_a_closed_set():
    assert set(NUMERICS) == {"original", "timm"}
    with pytest.raises(UserError, match="unknown stem numerics 'tim'; did you mean 'timm'"):
        jax.eval_shape(ResNet((), numerics="tim").init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_group_norm_equals_flax(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 64)) + 2, jnp.float32)
    params = {"scale": jnp.linspace(0, 2, 64), "bias": jnp.linspace(-1, 1, 64)}
    want = jax.jit(nn.GroupNorm(32).apply)({"params": params}, x)
    np.testing.assert_allclose(jax.jit(GroupNorm().apply)({"params": params}, x), want, atol=1e-5)
    want = jax.jit(nn.GroupNorm(32, epsilon=0.3).apply)({"params": params}, x)
    np.testing.assert_allclose(jax.jit(GroupNorm(epsilon=0.3).apply)({"params": params}, x), want, atol=1e-5)


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
