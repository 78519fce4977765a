"""The kernel interpreted, against float64; its gradient takes in that of what goes on beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.layer_norm import mosaic_tpu

EPSILON = 1e-3
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def draw(rng, shape, dtype):
    """x with an offset, scale, bias and two cotangents; x and cotangents rounded, kept in float32."""
    rounded = lambda s: np.asarray(jnp.asarray(rng.standard_normal(s), dtype), np.float32)  # noqa: E731
    scale, bias = (rng.standard_normal(shape[-1]).astype("float32") for _ in range(2))
    return rounded(shape) + 2.0, scale, bias, rounded(shape), rounded(shape)


def expected(x, scale, bias, beside, g):
    x, beside, g = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x, beside, g))
    inverse = 1 / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    normalised, inner = (x - x.mean(-1, keepdims=True)) * inverse, g * scale
    along = (inner * normalised).mean(-1, keepdims=True)
    dx = beside + inverse * (inner - inner.mean(-1, keepdims=True) - normalised * along)
    return x, normalised * scale + bias, dx, (g * normalised).sum(0), g.sum(0)


def both(x, scale, bias, *g):
    y, pull = jax.vjp(lambda *args: mosaic_tpu.run(*args, EPSILON), x, scale, bias)
    return *y, *pull(g)


def check(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        a = np.asarray(a, np.float64).reshape(b.shape)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.first(2)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("shape", "rows", "dtype"),
    [
        ((5, 7), (512, 16), "float32"),
        ((2, 3, 130), (512, 16), "bfloat16"),
        ((2, 133, 9), (48, 16), "float32"),  # images apart, the last tile ragged
        ((37, 9), (16,), "bfloat16"),
    ],
)
def test_value_and_gradients_equal_float64(rng, monkeypatch, shape, rows, dtype):
    monkeypatch.setattr(mosaic_tpu, "ROWS", rows)
    x, scale, bias, *g = draw(rng, shape, dtype)
    x = np.asarray(jnp.asarray(x, dtype), np.float32)
    got = jax.jit(both)(jnp.asarray(x, dtype), scale, bias, *(jnp.asarray(v, dtype) for v in g))
    assert [v.dtype for v in got] == [dtype] * 3 + ["float32"] * 2
    assert got[0].shape == got[1].shape == got[2].shape == shape
    check(got, expected(x, scale, bias, *g), dtype)


@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize("shape", [(16, 2, 5), (3, 2, 5), (3, 129, 5)])  # 3 do not divide among 4 devices
def test_on_a_mesh_equals_float64(rng, shape):
    args = draw(rng, shape, "float32")
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        got = jax.jit(both)(*jax.device_put(args, jax.sharding.NamedSharding(mesh, jax.P())))
    check(got, expected(*args), "float32")


def test_where_it_stands_back():
    shapes = ((7, 8), "bfloat16"), ((7, 8), "float16"), ((8, 2**20), "float32")
    found = [mosaic_tpu.unsupported_reason(jax.ShapeDtypeStruct(*s), None, None, EPSILON) for s in shapes]
    assert found[:2] == [None, "x is float16, neither float32 nor bfloat16"]
    assert found[2] == "it takes 896 MiB of VMEM, of which it may use 32"


@pytest.mark.tpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiler_takes_it(tpu_chips, dtype):
    mesh = sharding.make_mesh(sharding.MeshConfig(), tpu_chips("v5e:2x2")[:1])
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    shapes = ((8, 197, 768), dtype), ((768,), "float32"), ((768,), "float32"), *[((8, 197, 768), dtype)] * 2
    with jax.set_mesh(mesh):
        args = [jax.ShapeDtypeStruct(*s, sharding=whole) for s in shapes]
        text = jax.jit(functools.partial(both)).lower(*args).compile().as_text()
    assert "norm_forward" in text and "norm_backward" in text
