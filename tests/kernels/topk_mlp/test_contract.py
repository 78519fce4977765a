"""One suite for every implementation of the product after TopK, against the definition in float64."""

import functools
import logging
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.topk_mlp import IMPLEMENTATIONS, reference, topk_mlp
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {  # leading dimensions; F, D, k
    "a vector": ((), 40, 24, 5),
    "a batch": ((2, 1, 3), 48, 7, 1),
    "all units": ((3,), 16, 5, 16),
    "more than all": ((3,), 16, 5, 99),
    "several chunks and tiles, ragged": ((37,), 600, 20, 30),
    "tokens to classes": ((1, 197), 64, 100, 9),
}
RUNS = [
    *(("float32", case) for case in CASES),
    ("bfloat16", "tokens to classes"),
    *(pytest.param("bfloat16", case, marks=pytest.mark.slow) for case in CASES if case != "tokens to classes"),
]
named = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def draw(rng, lead, units, width, k, dtype):
    """h, the parameters (rounded to the compute type, kept in float32) and a cotangent."""
    z = rng.standard_normal((int(np.prod(lead)), units)).round(1)  # there are ties and rows of fewer than k
    shapes = (units, width), (width,), (*lead, width)
    arrays = reference.topk(z, k).reshape(*lead, units), *(rng.standard_normal(s) for s in shapes)
    return [np.asarray(jnp.asarray(a, dtype), np.float32) for a in arrays]


@pytest.mark.first(8)
@named
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("dtype", "case"), RUNS)
def test_value_and_gradients_equal_float64(rng, name, dtype, case):
    lead, units, width, k = CASES[case]
    h, kernel, bias, g = draw(rng, lead, units, width, k, dtype)

    @jax.jit
    def both(g, *args):
        y, pull = jax.vjp(functools.partial(topk_mlp, k=k, implementation=name), *args)
        return y, *pull(g)

    got = both(jnp.asarray(g, dtype), jnp.asarray(h, dtype), kernel, bias)
    assert [v.dtype for v in got] == [dtype, dtype, "float32", "float32"]
    assert got[0].shape == g.shape and got[1].shape == h.shape
    rows, g = h.reshape(-1, units), g.reshape(-1, width)
    want = reference.product(rows, kernel, bias), *reference.gradients(rows, kernel, g)
    for a, b in zip(got, want, strict=True):
        a = np.reshape(np.asarray(a, np.float64), b.shape)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@named
@pytest.mark.usefixtures("interpreted")
def test_units_of_either_sign_few_or_none(rng, name):
    h = np.zeros((3, 24), np.float32)
    h[0, [3, 4, 20]], h[1, 7] = (-2, 1, -0.5), 5
    kernel = rng.standard_normal((24, 6)).astype("float32")
    f = jax.jit(functools.partial(topk_mlp, k=3, implementation=name))
    np.testing.assert_allclose(f(h, kernel), reference.product(h, kernel), atol=1e-5)
    np.testing.assert_array_equal(f(h[2:], kernel, jnp.ones(6)), np.ones((1, 6)))


@named
@pytest.mark.usefixtures("interpreted")
def test_types_of_the_kernel(rng, name):
    h, kernel, bias, g = draw(rng, (7,), 32, 5, 4, "bfloat16")

    @jax.jit
    def both(g, *args):
        y, pull = jax.vjp(functools.partial(topk_mlp, k=4, implementation=name), *args)
        return y, *pull(g)

    for dtype, other in (("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        args = jnp.asarray(h, dtype), jnp.asarray(kernel, other), jnp.asarray(bias, other)
        y, *gradients = both(jnp.asarray(g, dtype), *args)
        assert [v.dtype for v in (y, *gradients)] == [dtype, dtype, other, other]
        want = reference.product(h, kernel, bias)
        np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=TOLERANCE[dtype] * np.abs(want).max())


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_remat_vmap_and_no_bias(rng, name):
    h, kernel, _, _ = draw(rng, (3, 4), 16, 5, 2, "float32")
    f = functools.partial(topk_mlp, k=2, implementation=name)
    want = reference.product(h.reshape(-1, 16), kernel).reshape(3, 4, 5)
    np.testing.assert_allclose(jax.jit(jax.vmap(f, (0, None)))(h, kernel), want, rtol=1e-4, atol=1e-5)
    loss = lambda w: jnp.sum(jnp.square(f(h, w)))  # noqa: E731
    plain = jax.jit(jax.grad(loss))(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(kernel), plain, rtol=1e-6)


@pytest.mark.first(2)
@named
@pytest.mark.parametrize("rows", [16, 3])  # 3 x 2 tokens do not divide among 4 devices
def test_on_a_mesh_equals_one_device(rng, same_on_a_mesh, name, rows):
    h, *parameters, g = draw(rng, (rows, 2), 48, 6, 4, "float32")
    same_on_a_mesh(functools.partial(topk_mlp, k=4, implementation=name), h, parameters, g)


def test_exported_for_any_number_of_tokens(rng):
    h, kernel, bias, _ = draw(rng, (7,), 48, 6, 4, "float32")
    (n,) = jax.export.symbolic_shape("n")
    args = jax.ShapeDtypeStruct((n, 48), "float32"), kernel, bias
    program = jax.export.export(jax.jit(functools.partial(topk_mlp, k=4)))(*args)
    np.testing.assert_allclose(program.call(h, kernel, bias), reference.product(h, kernel, bias), atol=1e-5)
    with pytest.raises(UserError, match="'mosaic_tpu' does not run this topk_mlp: the number of tokens is not known"):
        jax.export.export(jax.jit(functools.partial(topk_mlp, k=4, implementation="mosaic_tpu")))(*args)


@named
def test_sums_are_float32(name):
    h, kernel = jax.ShapeDtypeStruct((1, 64), "bfloat16"), jax.ShapeDtypeStruct((64, 8), "float32")
    jaxpr = str(jax.make_jaxpr(functools.partial(topk_mlp, k=4, implementation=name))(h, kernel))
    assert jaxpr.count("preferred_element_type=float32") == jaxpr.count("dot_general") == 1


@pytest.mark.parametrize("name", ["gather", "dense"])
def test_no_tokens(name):
    assert topk_mlp(jnp.ones((0, 6)), jnp.ones((6, 4)), k=2, implementation=name).shape == (0, 4)


def test_who_runs_off_a_tpu(rng, caplog):
    dispatch.say.cache_clear()
    h, kernel, bias, _ = draw(rng, (4,), 48, 6, 4, "float32")
    with caplog.at_level(logging.WARNING):
        few = topk_mlp(h, kernel, bias, k=4)
        assert caplog.messages == []
        many = topk_mlp(h, kernel, bias, k=5)
    np.testing.assert_array_equal(few, topk_mlp(h, kernel, bias, k=4, implementation="gather"))
    np.testing.assert_array_equal(many, topk_mlp(h, kernel, bias, k=5, implementation="dense"))
    assert caplog.messages == [
        "topk_mlp runs as 'dense'; not 'gather': 5 rows of the kernel for each of 4 tokens are more than a third of "
        "its 48."
    ]
    assert list(IMPLEMENTATIONS) == ["mosaic_tpu", "gather", "dense"]


@pytest.mark.parametrize(
    ("shapes", "k", "sentence"),
    [
        (((5, 7), (6, 4)), 2, "h with 7 units and a kernel of shape (6, 4) do not belong together; give kernel [F, D]"),
        (((5, 6), (2, 3, 4)), 2, "h with 6 units and a kernel of shape (2, 3, 4) do not belong together"),
        (((5, 6), (6, 4), (5,)), 2, "bias has shape (5,), the product 4 outputs; give (4,)."),
        (((5, 6), (6, 4)), 0, "k=0 is not a number of units; give 1 or more."),
    ],
)
def test_what_does_not_fit(shapes, k, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        topk_mlp(*map(np.zeros, shapes), k=k)
