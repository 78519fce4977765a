"""The Hopper kernel: interpreted against float64, lowered for a GPU that is not there."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.monarch import monarch, mosaic_gpu, reference
from vit_jax.types import UserError


def shapes(factors, rows, dtype="bfloat16"):
    K, q, p, L, S = factors
    sizes = ((rows, K * p), (K, q, p), (L, S, K * q // L), (L * S,), (rows, L * S))
    return [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, (dtype, *["float32"] * 3, dtype), strict=True)]


def draw(rng, factors, rows):
    """x, the parameters (rounded to bfloat16, kept in float32) and a cotangent, natural order."""
    return [
        np.asarray(jnp.asarray(rng.standard_normal(s.shape), jnp.bfloat16), np.float32) for s in shapes(factors, rows)
    ]


def both(x, kernel_1, kernel_2, bias, g, parts=1, blocked=False, name="mosaic_gpu"):
    f = functools.partial(monarch, input_parts=parts, blocked=blocked, implementation=name)
    y, pull = jax.vjp(f, x, kernel_1, kernel_2, bias)
    return y, *pull(g)


def close(got, want):
    for a, b in zip(got, want, strict=True):
        b = np.asarray(b, np.float64)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=2e-2 * np.abs(b).max())


def lowered(f, *args):
    return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.first(1)
@pytest.mark.usefixtures("gpu_interpreted")
@pytest.mark.parametrize(
    ("factors", "rows", "parts", "blocked"),
    [
        ((4, 64, 16, 4, 32), 5, 1, False),  # T = 16, one group of warps
        ((2, 24, 32, 1, 40), 200, 2, True),  # T = 24 in windows of 32, ragged outputs, the last tile overlaps
        ((2, 24, 40, 3, 33), 67, 1, False),  # inputs and T filled up, odd outputs, K != L
    ],
)
def test_value_and_gradients_equal_float64(rng, factors, rows, parts, blocked):
    x, kernel_1, kernel_2, bias, g = draw(rng, factors, rows)
    blocks = factors[3] if blocked else 1
    arranged = [jnp.asarray(reference.to_parts(v, n), jnp.bfloat16) for v, n in ((x, parts), (g, blocks))]
    run = jax.jit(functools.partial(both, parts=parts, blocked=blocked))
    y, dx, *rest = run(arranged[0], kernel_1, kernel_2, bias, arranged[1])
    assert [v.dtype for v in (y, dx, *rest)] == ["bfloat16"] * 2 + ["float32"] * 3
    dx_want, *rest_want = reference.gradients(x, kernel_1, kernel_2, g)
    y_want = reference.to_parts(reference.product(x, kernel_1, kernel_2, bias), blocks)
    close((y, dx, *rest), (y_want, reference.to_parts(dx_want, parts), *rest_want))


@pytest.mark.usefixtures("gpu_interpreted")
def test_the_intermediate_is_rounded_once_and_sums_are_exact(rng):
    args = [
        jnp.asarray(v, t.dtype)
        for v, t in zip(draw(rng, (2, 32, 16, 2, 32), 9), shapes((2, 32, 16, 2, 32), 9), strict=True)
    ]
    got, want = (jax.jit(functools.partial(both, name=name))(*args) for name in ("mosaic_gpu", "xla"))
    for a, b in zip(got[:2], want[:2], strict=True):
        assert np.mean(np.asarray(a, np.float32) != np.asarray(b, np.float32)) < 0.02
    for a, b in zip(got[2:], want[2:], strict=True):
        np.testing.assert_array_equal(a, b)


REAL = {
    "B wide": ((4, 192, 192, 4, 768), 1576, 1),
    "B narrow": ((4, 192, 768, 4, 192), 1576, 4),
    "S, few rows": ((4, 96, 96, 4, 384), 8, 1),
    "H, classes": ((4, 320, 320, 4, 250), 197, 1),
}


@pytest.mark.first(1)
@pytest.mark.parametrize("case", REAL)
def test_lowers_for_cuda_without_one(case):
    factors, rows, parts = REAL[case]
    text = lowered(functools.partial(both, parts=parts, blocked=True), *shapes(factors, rows))
    assert text.count("mosaic_gpu_v2") == 2
    assert "monarch_forward" in text and "monarch_dx" in text


def test_each_device_takes_its_rows():
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    split, whole = sharding.data_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    places = split, whole, whole, whole, split
    specs = shapes((4, 32, 32, 4, 32), 800)
    args = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p) for s, p in zip(specs, places, strict=True)]
    with jax.set_mesh(mesh):
        text = lowered(functools.partial(both, blocked=True), *args)
    calls = [line for line in text.splitlines() if "mosaic_gpu_v2" in line and "custom_call" in line]
    assert len(calls) == 2 and all("tensor<200x4x32xbf16>" in line[-500:] for line in calls)


def test_vmap_lowers():
    x, *parameters, g = shapes((4, 32, 32, 4, 32), 16)
    several = [jax.ShapeDtypeStruct((3, *v.shape), v.dtype) for v in (x, g)]
    text = lowered(jax.vmap(both, (0, None, None, None, 0)), several[0], *parameters, several[1])
    assert text.count("mosaic_gpu_v2") == 2


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (shapes((4, 32, 32, 4, 32), 16, "float32"), "x is float32, not bfloat16, in which alone the matrix unit"),
        (shapes((4, 32, 32, 4, 32), 0), "there are no rows"),
        (shapes((2, 1024, 1024, 2, 64), 16), "a block gives 512 values to each of the other factor, more than 256"),
        (shapes((16, 1024, 256, 4, 64), 16), "64 rows of 4096 values between the factors leave too little of 227 KiB"),
    ],
)
def test_what_it_refuses(args, sentence):
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(functools.partial(monarch, implementation="mosaic_gpu"), *args[:4])


def test_other_gpus_are_left_to_other_implementations(monkeypatch):
    args, options = shapes((4, 192, 192, 4, 768), 16)[:4], {"input_parts": 1, "blocked": False}
    named = "it is the faster one without gradients only, name it for those"
    assert mosaic_gpu.slower_reason(*args, **options) == named
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, found in (("9.0", named), ("8.0", "this GPU has compute capability 8.0, the kernel is for 9.0")):
        monkeypatch.setattr(jax, "local_devices", lambda c=capability: [types.SimpleNamespace(compute_capability=c)])
        assert mosaic_gpu.slower_reason(*args, **options) == found


def test_where_a_dense_product_is_less_work():
    found = mosaic_gpu.slower_reason(*shapes((2, 96, 96, 2, 96), 64)[:4], input_parts=1, blocked=False)
    assert found == "blocks filled up to what the matrix unit takes make 1.2 times the work of a dense product"
