"""One suite for every implementation of the block-sparse product, against the definition in float64."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.kernels.block_sparse import IMPLEMENTATIONS, block_sparse, patterns, reference, to_dense
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
FREE = np.array([[3, 0], [0, 2], [3, 2]], np.int32)  # nobody reads block 1; rows are in no order
CASES = {  # block, index, in_blocks, leading dimensions; 128 lanes are what the TPU kernel takes
    "wider": (128, patterns.butterfly(2, 4, 1), 2, (2, 25)),
    "narrower": (128, patterns.butterfly(5, 2, 4), 5, (1, 19)),
    "free": (128, FREE, 4, (7,)),
    "one row": (128, np.array([[0, 2]], np.int32), 3, ()),
    "small blocks": (8, patterns.random(6, 9, 2, 0), 6, (1, 197)),
    "all": (4, patterns.butterfly(3, 4, 3), 3, (5, 2)),
    "twice": (128, np.array([[1, 1], [0, 1]], np.int32), 2, (5,)),
}
named = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def every(test):
    return named(pytest.mark.usefixtures("interpreted")(test))


def draw(rng, case, dtype):
    """x, kernel, bias and a cotangent, rounded to the compute type and kept in float32."""
    b, index, in_blocks, lead = CASES[case]
    out = b * len(index)
    shapes = ((*lead, in_blocks * b), (index.shape[1], b, out), (out,), (*lead, out))
    return [np.asarray(jnp.asarray(rng.standard_normal(s), dtype), np.float32) for s in shapes]


FAST = {"narrower", "free"}
"""What bfloat16 is tried on but in the slow tests."""
RUNS = [
    pytest.param(name, case, dtype, known, marks=[pytest.mark.slow] if dtype == "bfloat16" and case not in FAST else [])
    for name, (case, (b, *_)), dtype, known in itertools.product(
        IMPLEMENTATIONS, CASES.items(), TOLERANCE, (True, False)
    )
    if name != "mosaic_tpu" or (b == 128 and (known or case == "free"))  # for the kernels the index is always data
]


@pytest.mark.first(6)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("name", "case", "dtype", "known"), RUNS)
def test_value_and_gradients_equal_float64(rng, name, case, dtype, known):
    _, index, *_ = CASES[case]
    x, kernel, bias, g = draw(rng, case, dtype)

    @jax.jit
    def both(at, g, *args):
        run = lambda x, kernel, bias: block_sparse(x, kernel, index if known else at, bias, implementation=name)  # noqa: E731
        y, pull = jax.vjp(run, *args)
        return y, *pull(g)

    got = both(jnp.asarray(index), jnp.asarray(g, dtype), jnp.asarray(x, dtype), kernel, bias)
    assert [v.dtype for v in got] == [dtype, dtype, "float32", "float32"]
    assert got[0].shape == g.shape and got[1].shape == x.shape
    rows, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    want = [reference.product(rows, kernel, index, bias), *reference.gradients(rows, kernel, index, g)]
    for a, w in zip(got, want, strict=True):
        np.testing.assert_allclose(
            np.reshape(np.asarray(a, np.float64), w.shape), w, atol=TOLERANCE[dtype] * abs(w).max()
        )


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_vmap_remat_and_no_bias(rng, name):
    _, index, *_ = CASES["free"]
    x, kernel, _, _ = draw(rng, "free", "float32")
    f = functools.partial(block_sparse, index=index, implementation=name)
    want = reference.product(x, kernel, index)
    np.testing.assert_allclose(jax.jit(jax.vmap(f, (0, None)))(x[:, None], kernel)[:, 0], want, rtol=1e-4, atol=1e-4)
    loss = lambda k: jnp.sum(jnp.square(f(x, k)))  # noqa: E731
    plain = jax.jit(jax.grad(loss))(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(kernel), plain, rtol=1e-6)


@every
def test_parameters_in_half_precision(rng, name):
    x, kernel, bias, g = (jnp.asarray(a, jnp.bfloat16) for a in draw(rng, "free", "bfloat16"))
    run = lambda x, kernel, bias: block_sparse(x, kernel, FREE, bias, implementation=name)  # noqa: E731

    def both(g, *args):
        y, pull = jax.vjp(run, *args)
        return y, *pull(g)

    assert {v.dtype for v in jax.eval_shape(both, g, x, kernel, bias)} == {jnp.dtype("bfloat16")}


@pytest.mark.first(2)
@named
@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize(("rows", "known"), [(16, True), (3, False)])  # 3 rows do not divide among 4 devices
def test_on_a_mesh_equals_one_device(rng, name, rows, known):
    x, kernel, bias, g = draw(rng, "free", "float32")
    x, g = np.resize(x, (rows, x.shape[1])), np.resize(g, (rows, g.shape[1]))

    def both(x, g, kernel, bias, index):
        run = lambda x, kernel, bias: block_sparse(x, kernel, FREE if known else index, bias, implementation=name)  # noqa: E731
        y, pull = jax.vjp(run, x, kernel, bias)
        return y, *pull(g)

    want = reference.product(x, kernel, FREE, bias), *reference.gradients(x, kernel, FREE, g)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    place = sharding.data_sharding(mesh) if rows % 4 == 0 else jax.sharding.NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh):
        split = (jax.device_put(v, place) for v in (x, g))
        whole = (jax.device_put(v, jax.sharding.NamedSharding(mesh, jax.P())) for v in (kernel, bias, FREE))
        got = jax.jit(both)(*split, *whole)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_to_dense(rng):
    _, kernel, _, _ = draw(rng, "narrower", "float32")
    _, index, in_blocks, _ = CASES["narrower"]
    got = jax.jit(lambda kernel: to_dense(kernel, index, 128 * in_blocks))(kernel)
    np.testing.assert_array_equal(got, reference.dense(kernel, index, 640))


@pytest.mark.parametrize(
    ("shapes", "index", "sentence"),
    [
        (
            ((5, 9), (1, 2, 4), (4,)),
            [[0], [1]],
            "x with 9 inputs and a kernel of shape (1, 2, 4) do not belong together",
        ),
        (((5, 8), (1, 2, 5), (5,)), [[0], [1]], "x with 8 inputs and a kernel of shape (1, 2, 5) do not"),
        (((5, 8), (2, 4), (4,)), [[0], [1]], "a kernel of shape (2, 4) do not"),
        (((5, 8), (1, 2, 4), (4,)), [[0]], "needs an integer index [out / b, per] = (2, 1); this one is int64 (1, 1)"),
        (((5, 8), (1, 2, 4), (4,)), [[0.0], [1.0]], "this one is float64 (2, 1)"),
        (((5, 8), (1, 2, 4), (3,)), [[0], [1]], "bias has shape (3,), the product 4 outputs; give (4,)."),
        (((5, 8), (1, 2, 4), (4,)), [[0], [4]], "the index goes from 0 to 4, and 8 inputs are blocks 0 to 3"),
        (((5, 8), (1, 2, 4), (4,)), [[-1], [3]], "the index goes from -1 to 3"),
    ],
)
def test_what_does_not_fit_is_a_sentence(shapes, index, sentence):
    x, kernel, bias = (np.zeros(s, np.float32) for s in shapes)
    with pytest.raises(UserError, match=re.escape(sentence)):
        block_sparse(x, kernel, index, bias)


@pytest.mark.parametrize("name", ["xla", "dense"])
def test_no_rows(name):
    x, kernel = np.zeros((0, 8), np.float32), np.zeros((1, 2, 4), np.float32)
    y = jax.jit(lambda x, kernel: block_sparse(x, kernel, [[0], [1]], implementation=name))(x, kernel)
    assert y.shape == (0, 4)
