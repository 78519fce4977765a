"""One suite for every implementation of the perceptron of Monarch maps, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels import tiles
from vit_jax.kernels.monarch import reference
from vit_jax.kernels.monarch_mlp import IMPLEMENTATIONS, monarch_mlp
from vit_jax.kernels.monarch_mlp.factors import Factors
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {  # k, q, p, l, s of both maps; leading dimensions
    "square": (((4, 8, 8, 4, 32), (4, 8, 32, 4, 8)), (3,)),
    "unlike": (((2, 6, 4, 3, 10), (5, 4, 6, 2, 7)), (2, 1, 7)),
    "in slots": (((4, 48, 12, 4, 192), (4, 48, 192, 4, 12)), (5,)),
    "images": (((2, 4, 3, 2, 8), (2, 4, 8, 2, 3)), (2, 133)),
}
RUNS = [
    *(("float32", case) for case in CASES),
    ("bfloat16", "unlike"),
    *(pytest.param("bfloat16", case, marks=pytest.mark.slow) for case in CASES if case != "unlike"),
]
named = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def activation(x):
    """``tanh(x + 1)``, which is not 0 at 0."""
    return jnp.tanh(x.astype(jnp.float32) + 1.0).astype(x.dtype)


def draw(rng, factors, lead, dtype):
    """x, the parameters of both maps and a cotangent: rounded to the compute type, kept in float32."""
    (K, q, p, L, S), (K2, q2, p2, L2, S2) = factors
    shapes = ((K, q, p), (L, S, K * q // L), (L * S,)), ((K2, q2, p2), (L2, S2, K2 * q2 // L2), (L2 * S2,))
    rounded = lambda s: np.asarray(jnp.asarray(rng.standard_normal(s) * s[-1] ** -0.5, dtype), np.float32)  # noqa: E731
    x, g = (rounded((*lead, n)) for n in (K * p, L2 * S2))
    return x, *(Factors(*map(rounded, row)) for row in shapes), g


def expected(x, first, second, g):
    """The output and the gradients of x and of both maps."""
    x, g = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x, g))
    h = np.tanh(reference.product(x, *first) + 1)
    dh, *d2 = reference.gradients(h, *second[:2], g)
    dx, *d1 = reference.gradients(x, *first[:2], dh * (1 - h**2))
    return reference.product(h, *second), dx, d1, d2


def both(name, x, first, second, g):
    y, pull = jax.vjp(lambda *args: monarch_mlp(*args, activation, implementation=name), x, first, second)
    return y, *pull(g)


@pytest.mark.first(4)
@named
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("dtype", "case"), RUNS)
def test_value_and_gradients_equal_float64(rng, name, dtype, case):
    x, first, second, g = draw(rng, *CASES[case], dtype)
    got = jax.jit(functools.partial(both, name))(jnp.asarray(x, dtype), first, second, jnp.asarray(g, dtype))
    assert [v.dtype for v in jax.tree.leaves(got)] == [dtype, dtype, *["float32"] * 6]
    assert got[0].shape == g.shape and got[1].shape == x.shape
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected(x, first, second, g)), strict=True):
        np.testing.assert_allclose(
            np.reshape(np.asarray(a, np.float64), b.shape), b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max()
        )


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("lead", "tile"), [((37,), 16), ((2, 130), 48)])
def test_several_tiles_the_last_one_ragged(rng, lead, tile):
    x, first, second, g = draw(rng, CASES["unlike"][0], lead, "float32")
    with tiles.pinned(monarch_mlp=tile):
        got = jax.jit(lambda *args: both("mosaic_tpu", *args))(x, first, second, g)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected(x, first, second, g)), strict=True):
        np.testing.assert_allclose(np.reshape(a, b.shape), b, rtol=0, atol=1e-5 * np.abs(b).max())


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_no_biases_and_parameters_in_half_precision(rng, name):
    x, first, second, g = draw(rng, *CASES["square"], "bfloat16")
    half = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), tree)  # noqa: E731
    first, second = (half(f._replace(bias=None)) for f in (first, second))
    y, dx, d1, d2 = jax.jit(functools.partial(both, name))(half(x), first, second, half(g))
    assert d1.bias is None and d2.bias is None
    assert {v.dtype for v in jax.tree.leaves((y, dx, d1, d2))} == {jnp.dtype("bfloat16")}
    none = [Factors(*(np.asarray(k, np.float32) for k in f[:2]), np.zeros(())) for f in (first, second)]
    want = expected(x, *none, g)[0]
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=0, atol=2e-2 * np.abs(want).max())


@pytest.mark.first(2)
@named
@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize("lead", [(16, 2), (3, 2), (3, 130)])  # 3 do not divide among 4 devices
def test_on_a_mesh_equals_one_device(rng, name, lead):
    args = draw(rng, CASES["unlike"][0], lead, "float32")
    run = jax.jit(functools.partial(both, name))
    want = run(*args)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        got = jax.jit(functools.partial(both, name))(*jax.device_put(args, jax.sharding.NamedSharding(mesh, jax.P())))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_maps_that_do_not_fit_together(rng):
    x, first, _, _ = draw(rng, *CASES["square"], "float32")
    with pytest.raises(UserError, match="x has 128 features, kernel_1"):
        monarch_mlp(x, first, first, activation)
