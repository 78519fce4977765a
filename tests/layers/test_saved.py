"""Eight bits against float64: off by less than a step, by nothing on average; the forward pass untouched."""

from __future__ import annotations

import collections
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.products import matmul
from vit_jax.layers.block import Block, Encoder
from vit_jax.layers.saved import in_int8, pack, unpack
from vit_jax.types import UserError

BLOCK = functools.partial(Block, heads=2, mlp_dim=48, dropout=0.2, layer_scale=0.5)
PACK = jax.jit(pack)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 7, 32)), jnp.float32)


@pytest.fixture(scope="module")
def params(tokens):
    shapes = nn.meta.unbox(jax.eval_shape(Encoder(2, BLOCK).init, jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def distance(got, want):
    """Relative, in the 2-norm over all leaves."""
    flat = [np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (got, want)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def run(params, tokens, **options):
    """Value and gradients by parameters, tokens and what is attended to."""
    depth = 2 if options.keys() - {"saved"} else 1
    encoder = Encoder(depth, BLOCK, drop_path=0.4, stochastic=True, **options)
    mask = jnp.asarray(np.random.default_rng(2).random((3, 1, 7, 7)) < 0.7)

    def loss(params, tokens):
        rngs = {"dropout": jax.random.key(7)}
        out = encoder.apply({"params": params}, tokens, train=True, rngs=rngs, mask=mask)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, tokens)


@pytest.mark.parametrize(("n", "dtype"), [(1, "float32"), (197, "float32"), (64, "bfloat16")])
def test_off_by_less_than_a_step_and_rows_end_where_they_end(n, dtype):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((5, 3, n)) * 10.0 ** rng.integers(-12, 12, (5, 3, 1))).astype(dtype)
    x[0, 0] = x[0, 0, 0]  # a row of one number
    x[0, 1, : n // 2] = 0.0  # as behind a mask or a ReLU
    rows = PACK(jnp.asarray(x))
    assert rows.steps.dtype == jnp.uint8 and rows.step.shape == rows.least.shape == (5, 3, 1)
    got, wide = np.asarray(unpack(rows)), x.astype(np.float64)
    assert got.dtype == x.dtype
    least, most = wide.min(-1, keepdims=True), wide.max(-1, keepdims=True)
    rounded = 4 * np.abs(wide).max(-1, keepdims=True) * float(jnp.finfo(dtype).eps)  # range, step, product, sum
    off = np.abs(got.astype(np.float64) - wide)
    assert np.all(off <= (most - least) / 255 * (1 + 1e-5) + rounded)
    np.testing.assert_array_equal(off[wide == least], 0)
    assert np.all(off[wide == most] <= np.broadcast_to(rounded, x.shape)[wide == most])


def test_nothing_is_added_on_average():
    """Wherever a number lies between two steps: of as many rows with other ends the mean is off by their noise."""
    count = 20_000
    ends = np.random.default_rng(0).uniform(1.0, 2.0, (count, 1))
    between = np.linspace(0.0, 1.0, 11)
    x = np.concatenate([0 * ends, ends, (40 + between) * ends / 255], axis=1).astype(np.float32)
    rows = PACK(jnp.asarray(x))
    off = (np.asarray(unpack(rows), np.float64) - x)[:, 2:] / np.asarray(rows.step)
    noise = np.sqrt(between * (1 - between) / count)  # of what is a step up with this probability, and else down
    assert np.all(np.abs(off.mean(0)) <= 4 * noise + 1e-4)
    assert np.all(np.abs(off.std(0) - np.sqrt(between * (1 - between))) < 0.02)
    assert np.all(np.abs(np.corrcoef(off[:, 1:-1].T) - np.eye(9))[0, 1:] < 0.99)


def test_a_row_that_is_no_number_stays_none():
    x = jnp.asarray([[1.0, 2.0, jnp.nan], [1.0, jnp.inf, 0.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(np.isnan(unpack(PACK(x))).all(-1), [True, True, False])


def test_the_gradient_of_a_product_is_within_the_steps(rng):
    """``dW = x^T g`` is off by at most ``step^T |g|``; nothing else is off, as weights are kept as they are."""
    x, w, g = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5, 24), (24, 8), (3, 5, 8)))

    def product(w, x):
        return matmul(x, 2 * w)

    def gradients(f):
        return jax.jit(lambda w, x, g: jax.vjp(f, w, x)[1](g))(w, x, g)

    (dw, dx), (_, want) = gradients(in_int8(product)), gradients(product)
    np.testing.assert_array_equal(dx, want)
    flat = lambda a: a.astype(np.float64).reshape(-1, a.shape[-1])  # noqa: E731
    step = np.broadcast_to((x.max(-1) - x.min(-1))[..., None] / 255, x.shape)
    off = np.abs(dw - 2 * flat(x).T @ flat(g))
    assert np.all(off <= 2 * flat(step).T @ np.abs(flat(g)) + 1e-5) and np.median(off) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": "dots"}, {"scan": True}, {"remat": "full"}])
def test_values_stay_bit_for_bit_and_gradients_within_a_hundredth(params, tokens, options):
    """A row's step is a 50th of its deviation, so errors are a hundredth of what is saved."""
    ((_, value), want), ((_, got), gradients) = (
        run(params, tokens, saved=saved, **options) for saved in ("float", "int8")
    )
    np.testing.assert_array_equal(got, value)
    assert jax.tree.structure(gradients) == jax.tree.structure(want)
    assert 1e-4 < distance(gradients, want) < 2e-2
    jax.tree.map(lambda g, w: np.testing.assert_(distance(g, w) < 0.1), gradients[0]["block_0"], want[0]["block_0"])


def kept(params, tokens, dtype="float32", **options):
    """Shape and type of what is kept of the tokens."""
    block = functools.partial(Block, heads=2, mlp_dim=48, dtype=dtype)
    encoder = Encoder(1, block, dtype=dtype, final_norm=False, **options)
    apply = lambda p, x: encoder.apply({"params": p}, x)  # noqa: E731
    leaves = jax.tree.leaves(jax.eval_shape(lambda p, x: jax.vjp(apply, p, x)[1], params, tokens))
    return [(x.shape, str(x.dtype)) for x in leaves if x.shape[:1] == tokens.shape[:1]]


def size(leaves):
    return sum(math.prod(shape) * jnp.dtype(kind).itemsize for shape, kind in leaves)


def test_all_that_is_kept_of_tokens_is_kept_in_eight_bits_alone(params):
    """But for the scales of the two norms, spread over the tokens: XLA makes them anew."""
    tokens = jax.ShapeDtypeStruct((5, 101, 32), jnp.float32)
    scales = [(tokens.shape, "float32")] * 2
    for how in ({}, {"dtype": "bfloat16"}, {"remat": "dots_no_batch"}, {"remat": "full"}):
        plain, found = kept(params, tokens, **how), kept(params, tokens, saved="int8", **how)
        wide = lambda leaves: [leaf for leaf in leaves if leaf[0][-1] > 1]  # noqa: E731
        same = [] if "remat" in how else scales
        assert [leaf for leaf in wide(found) if leaf[1] != "uint8"] == same
        shapes = collections.Counter(shape for shape, kind in found if kind == "uint8")
        assert shapes == collections.Counter(shape for shape, _ in wide(plain)) - collections.Counter(
            s for s, _ in same
        )
        if not how:  # eight bytes a row: of rows of 16 to 101 a tenth to half of theirs
            assert 0.25 < (size(found) - size(same)) / (size(plain) - size(same)) < 0.35


class Everything(nn.Module):
    """A block with a running mean, something sown, a perturbation, and a context."""

    @nn.compact
    def __call__(self, x, *, key=None, drop_path=None, context=None, grid=None):
        assert grid == (7, 1)  # numbers that shapes follow from come as they are
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * jnp.mean(x, (0, 1))
        self.sow("intermediates", "tokens", x)
        y = nn.Dense(x.shape[-1])((x - mean.value.reshape(1, 1, -1)) * context)
        if not self.is_initializing():
            y = self.perturb("branch", y)
        return x + nn.Dropout(0.5, rng_collection="mask", deterministic=not self.has_rng("mask"))(y)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"scan": True}])
def test_every_collection_and_stream_passes(tokens, options):
    given = {"grid": (7, 1)}
    variables = jax.jit(functools.partial(Encoder(2, Everything).init, **given))(
        jax.random.key(0), tokens, context=tokens
    )
    collections = ["batch_stats", "intermediates", "perturbations", "features"]
    zeros = jax.tree.map(jnp.zeros_like, Encoder(2, Everything).apply(
        variables, tokens, context=tokens, mutable=["perturbations"], **given)[1]["perturbations"])  # fmt: skip

    def of(saved):
        encoder = Encoder(2, Everything, saved=saved, **options)

        def loss(params, perturbations, context):
            tree = {**variables, "params": params, "perturbations": perturbations}
            rngs = {} if options else {"mask": jax.random.key(3)}  # Flax's own streams are split otherwise by a scan
            out, state = encoder.apply(tree, tokens, context=context, rngs=rngs, mutable=collections, **given)
            return jnp.sum(jnp.sin(out)), (out, state)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(variables["params"], zeros, tokens)

    (got, state), (want, plain) = of("int8"), of("float")
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    for mine, exact in zip(got, want, strict=True):
        assert 0 < distance(mine, exact) < 2e-2


def test_an_unknown_type_is_named(params, tokens):
    with pytest.raises(UserError, match="unknown type of what is saved 'int9'; did you mean 'int8'"):
        jax.eval_shape(lambda p: Encoder(2, BLOCK, saved="int9").apply({"params": p}, tokens), params)
