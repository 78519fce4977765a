"""One suite for every implementation of the selective scan, against the loop in float64."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.selective_scan import IMPLEMENTATIONS, mosaic_tpu, reference, selective_scan, xla
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {
    "ragged": (3, 21, 12, 5),
    "one token": (1, 1, 4, 16),
    "one number": (2, 9, 3, 1),
    "a register": (2, 40, 130, 8),
}
"""B, N, E, n."""
OTHERS = [("bfloat16", "ragged"), *(("float32", case) for case in CASES if case != "ragged")]
RUNS = [("float32", "ragged"), *(pytest.param(*run, marks=pytest.mark.slow) for run in OTHERS)]
named = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@pytest.fixture
def small(monkeypatch):
    """Chunks and tiles of which the sizes above have several."""
    monkeypatch.setattr(xla, "CHUNK", 8)


def draw(rng, batch, tokens, channels, size, dtype="float32"):
    """The arguments and a cotangent, rounded to the compute type where they are tokens'; in float32."""
    shape = (batch, tokens, channels)
    rounded = lambda v, to=dtype: np.asarray(jnp.asarray(v, to), np.float32)  # noqa: E731
    x, g = (rounded(rng.standard_normal(shape)) for _ in range(2))
    delta = rounded(np.exp(rng.uniform(-3, 0.5, shape)), "float32")
    b, c = (rounded(rng.standard_normal((batch, tokens, size))) for _ in range(2))
    a, d = -np.exp(rng.uniform(-2, 1.5, (channels, size))), rng.standard_normal(channels)
    return x, delta, np.float32(a), b, c, np.float32(d), g


def cast(args, dtype):
    """Tokens in the compute type; step sizes and parameters stay float32."""
    kinds = (dtype, "float32", "float32", dtype, dtype, "float32", dtype)
    return [jnp.asarray(v, kind) for v, kind in zip(args, kinds, strict=True)]


def both(name, *args):
    y, pull = jax.vjp(functools.partial(selective_scan, implementation=name), *args[:-1])
    return y, *pull(args[-1])


def check(got, args, tolerance):
    """Arguments are of order 1: of what is smaller than that rounding leaves as much."""
    want = reference.scan(*args[:-1]), *reference.gradients(*args)
    for a, b in zip(got, want, strict=True):
        a = np.asarray(a, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@named
@pytest.mark.usefixtures("interpreted_simply", "small")
@pytest.mark.parametrize(("dtype", "case"), RUNS)
def test_value_and_gradients_equal_the_loop(rng, name, dtype, case):
    args = draw(rng, *CASES[case], dtype)
    given = cast(args, dtype)
    got = jax.jit(functools.partial(both, name))(*given)
    assert [v.dtype for v in got] == [given[0].dtype, *(v.dtype for v in given[:-1])]
    check(got, args, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", [(1, 150, 140, 3), (3, 300, 270, 16), (2, 21, 12, 5)])
def test_several_chunks_and_tiles_the_last_ones_ragged(rng, monkeypatch, case):
    monkeypatch.setattr(mosaic_tpu, "CHUNK", 128)
    monkeypatch.setattr(mosaic_tpu, "CHANNELS", 128)
    args = draw(rng, *case)
    check(jax.jit(functools.partial(both, "mosaic_tpu"))(*args), args, 1e-5)


@named
@pytest.mark.slow
@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize("batch", [3, 4])  # 3 do not divide among 4 devices
def test_on_a_mesh_equals_the_loop(rng, name, batch):
    args = draw(rng, batch, 10, 6, 3)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        whole = jax.device_put(args, jax.sharding.NamedSharding(mesh, jax.P()))
        check(jax.jit(functools.partial(both, name))(*whole), args, 1e-5)


@pytest.mark.parametrize("name", ["sequential", "xla"])
@pytest.mark.parametrize("chunk", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 16, 64))])
def test_chunks_do_not_change_the_result(rng, monkeypatch, name, chunk):
    monkeypatch.setattr(xla, "CHUNK", chunk)
    args = draw(rng, 2, 16, 3, 2)
    check(jax.jit(functools.partial(both, name))(*args), args, 1e-5)


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_without_steps_a_token_is_its_own_output(rng, name):
    x, delta, *rest, d, _ = draw(rng, 2, 6, 4, 3)
    y = jax.jit(functools.partial(selective_scan, implementation=name))(x, np.zeros_like(delta), *rest, d)
    np.testing.assert_array_equal(y, x * d)


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_no_output_depends_on_a_later_token(rng, name):
    x, *rest, _ = draw(rng, 1, 21, 4, 3)
    later = x.copy()
    later[:, 11:] = 7
    run = jax.jit(functools.partial(selective_scan, implementation=name))
    np.testing.assert_array_equal(run(x, *rest)[:, :11], run(later, *rest)[:, :11])


def test_no_tokens(rng):
    *args, _ = draw(rng, 2, 5, 4, 3)
    empty = [v[:, :0] if v.ndim == 3 else v for v in args]
    assert jax.jit(selective_scan)(*empty).shape == (2, 0, 4)


@pytest.mark.slow
def test_exported_for_any_number_of_images(rng):
    *args, _ = draw(rng, 2, 5, 4, 3)
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((n, *v.shape[1:]) if v.ndim == 3 else v.shape, "float32") for v in args]
    program = jax.export.export(jax.jit(selective_scan))(*shapes)
    np.testing.assert_allclose(program.call(*args), reference.scan(*args), atol=1e-5)


@pytest.mark.parametrize(
    ("place", "shape", "sentence"),
    [
        (1, (2, 5, 3), "delta has shape (2, 5, 3); x (2, 5, 4) and a state of 3 need (2, 5, 4)."),
        (2, (5, 3), "a has shape (5, 3); x (2, 5, 4) and a state of 3 need (4, 3)."),
        (4, (2, 5, 2), "c has shape (2, 5, 2); x (2, 5, 4) and a state of 3 need (2, 5, 3)."),
    ],
)
def test_what_does_not_fit(rng, place, shape, sentence):
    *args, _ = draw(rng, 2, 5, 4, 3)
    args[place] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=re.escape(sentence)):
        selective_scan(*args)
