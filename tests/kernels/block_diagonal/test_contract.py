"""One suite for every implementation of the block-diagonal product, against the definition in float64."""

import functools
import logging
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.block_diagonal import IMPLEMENTATIONS, block_diagonal, reference, to_dense
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {  # n, in, out; leading dimensions
    "one block": ((1, 5, 7), (3,)),
    "tiny": ((4, 3, 2), (2, 1, 5)),
    "a vector": ((2, 64, 96), ()),
    "tokens to classes": ((4, 12, 250), (1, 197)),
    "several groups": ((6, 64, 32), (37,)),
}
RUNS = [
    *(("float32", case) for case in CASES),
    ("bfloat16", "several groups"),
    *(pytest.param("bfloat16", case, marks=pytest.mark.slow) for case in CASES if case != "several groups"),
]
named = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def draw(rng, shape, lead, dtype):
    """x, the parameters (rounded to the compute type, kept in float32) and a cotangent."""
    n, size, features = shape
    shapes = (*lead, n * size), shape, (n * features,), (*lead, n * features)
    return [np.asarray(jnp.asarray(rng.standard_normal(s), dtype), np.float32) for s in shapes]


@pytest.mark.first(8)
@named
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("dtype", "case"), RUNS)
def test_value_and_gradients_equal_float64(rng, name, dtype, case):
    shape, lead = CASES[case]
    x, kernel, bias, g = draw(rng, shape, lead, dtype)

    @jax.jit
    def both(g, *args):
        y, pull = jax.vjp(functools.partial(block_diagonal, implementation=name), *args)
        return y, *pull(g)

    got = both(jnp.asarray(g, dtype), jnp.asarray(x, dtype), kernel, bias)
    assert [v.dtype for v in got] == [dtype, dtype, "float32", "float32"]
    assert got[0].shape == g.shape and got[1].shape == x.shape
    rows, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    want = reference.product(rows, kernel, bias), *reference.gradients(rows, kernel, g)
    for a, b in zip(got, want, strict=True):
        a = np.reshape(np.asarray(a, np.float64), b.shape)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_vmap_remat_and_no_bias(rng, name):
    x, kernel, _, _ = draw(rng, (2, 3, 5), (3, 4), "float32")
    f = functools.partial(block_diagonal, implementation=name)
    want = reference.product(x.reshape(-1, 6), kernel).reshape(3, 4, 10)
    scaled = want * np.array([1, 2, 3])[:, None, None]

    rows = jax.jit(lambda x, kernel, several: (jax.vmap(f, (0, None))(x, kernel), jax.vmap(f)(x, several)))
    one, several = rows(x, kernel, np.stack([kernel, 2 * kernel, 3 * kernel]))
    np.testing.assert_allclose(one, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(several, scaled, rtol=1e-4, atol=1e-5)
    loss = lambda k: jnp.sum(jnp.square(f(x, k)))  # noqa: E731
    plain = jax.jit(jax.grad(loss))(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(kernel), plain, rtol=1e-6)


@named
@pytest.mark.usefixtures("interpreted")
def test_parameters_in_half_precision(rng, name):
    x, kernel, bias, g = (jnp.asarray(a, jnp.bfloat16) for a in draw(rng, (2, 3, 5), (7,), "bfloat16"))

    def both(g, *args):
        y, pull = jax.vjp(functools.partial(block_diagonal, implementation=name), *args)
        return y, *pull(g)

    assert {v.dtype for v in jax.eval_shape(both, g, x, kernel, bias)} == {jnp.dtype("bfloat16")}


@pytest.mark.first(2)
@named
@pytest.mark.parametrize("rows", [16, 3])  # 3 x 2 rows do not divide among 4 devices
def test_on_a_mesh_equals_one_device(rng, same_on_a_mesh, name, rows):
    x, *parameters, g = draw(rng, (2, 8, 6), (rows, 2), "float32")
    same_on_a_mesh(functools.partial(block_diagonal, implementation=name), x, parameters, g)


def test_exported_for_any_number_of_rows(rng):
    x, kernel, bias, _ = draw(rng, (2, 3, 5), (7,), "float32")
    args = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 6), "float32"), kernel, bias
    program = jax.export.export(jax.jit(block_diagonal))(*args)
    np.testing.assert_allclose(program.call(x, kernel, bias), reference.product(x, kernel, bias), atol=1e-5)
    with pytest.raises(UserError, match="'mosaic_tpu' does not run this block-diagonal product: the number of rows is"):
        jax.export.export(jax.jit(functools.partial(block_diagonal, implementation="mosaic_tpu")))(*args)


@pytest.mark.parametrize("name", ["xla", "dense"])
def test_no_rows(name):
    y = block_diagonal(jnp.ones((0, 6)), jnp.ones((2, 3, 4)), implementation=name)
    assert y.shape == (0, 8)


def test_the_dense_weight_is_the_blocks_in_place(rng):
    _, kernel, *_ = draw(rng, (3, 2, 4), (), "float32")
    np.testing.assert_array_equal(to_dense(kernel), reference.product(np.eye(6), kernel))


def test_who_runs_off_a_tpu(rng, caplog):
    dispatch.say.cache_clear()
    x, kernel, bias, _ = draw(rng, (2, 3, 5), (7,), "float32")
    with caplog.at_level(logging.WARNING):
        got = block_diagonal(x, kernel, bias)
        assert caplog.messages == []
        jaxpr = str(jax.make_jaxpr(block_diagonal)(jnp.ones((3, 129)), jnp.ones((129, 1, 2))))
    np.testing.assert_array_equal(got, block_diagonal(x, kernel, bias, implementation="xla"))
    assert jaxpr.count("dot_general") == 1
    assert caplog.messages == [
        "block-diagonal product runs as 'dense'; not 'xla': 129 blocks are more than the 128 products it is unrolled "
        "for."
    ]


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((5, 7), (2, 3, 4)), "x with 7 features and a kernel of shape (2, 3, 4) do not belong together; give kernel"),
        (((5, 6), (6, 4)), "x with 6 features and a kernel of shape (6, 4) do not belong together"),
        (((5, 6), (2, 3, 4), (7,)), "bias has shape (7,), the product 8 outputs; give (8,)."),
    ],
)
def test_shapes_that_do_not_fit(shapes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        block_diagonal(*map(np.zeros, shapes))
