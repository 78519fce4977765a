"""The Monarch layer against the published formula, its dense map, and the pair that leaves out the permutations."""

from __future__ import annotations

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.linear.spec_contract import check_layer, check_no_bias, check_variance, initialise
from vit_jax import config
from vit_jax.layers.linear import xavier_uniform_parts
from vit_jax.layers.linear.monarch import Monarch, pair
from vit_jax.layers.linear.projection import factor_shapes
from vit_jax.types import UserError

SIZES = [((5, 8), 8, 2), ((1, 2, 3, 9), 27, 3), ((2, 3, 32), 16, 4), ((4, 7), 11, 2), ((3, 35), 25, 3)]
"""Shape of the input, features, blocks: square, widening, narrowing, padded on both sides."""


@pytest.mark.first(2)
@pytest.mark.parametrize(("shape", "features", "nblocks"), SIZES)
def test_layer_is_its_dense_map(rng, shape, features, nblocks):
    check_layer(Monarch(nblocks), rng, shape, features, "float32")


@pytest.mark.parametrize(("shape", "features", "nblocks"), [SIZES[1], pytest.param(*SIZES[3], marks=pytest.mark.slow)])
def test_half_precision_and_no_bias(rng, shape, features, nblocks):
    check_layer(Monarch(nblocks), rng, shape, features, "bfloat16")
    check_no_bias(Monarch(nblocks), shape[-1], features)


@pytest.mark.parametrize(("shape", "features", "nblocks"), SIZES)
def test_layer_is_the_published_one(rng, shape, features, nblocks, torch):
    """A checkpoint of the public layer: its tensors under our names are the parameters, the outputs agree."""
    first, second = factor_shapes(shape[-1], features, nblocks)
    tensors = {"blkdiag1": torch.randn(first), "blkdiag2": torch.randn(second), "bias": torch.randn(features)}
    names = {"blkdiag1": "kernel_1", "blkdiag2": "kernel_2", "bias": "bias"}
    params = {names[k]: jnp.asarray(v.numpy()) for k, v in tensors.items()}
    x = rng.standard_normal(shape).astype(np.float32)
    want = public_layer(torch, torch.from_numpy(x), **tensors).numpy()
    for implementation in ("xla", "dense"):
        layer = Monarch(nblocks, implementation)(features, name="map")
        own = nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
        got = jax.jit(layer.apply)({"params": params}, x)
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def public_layer(torch, x, blkdiag1, blkdiag2, bias):
    k, _, p = blkdiag1.shape
    l, s, r = blkdiag2.shape  # noqa: E741
    rows = torch.nn.functional.pad(x, (0, k * p - x.shape[-1])).reshape(-1, k, p).transpose(0, 1)
    middle = torch.bmm(rows, blkdiag1.mT).transpose(0, 1).reshape(-1, r, l)
    out = torch.bmm(middle.permute(2, 0, 1), blkdiag2.mT).permute(1, 2, 0).reshape(*x.shape[:-1], s * l)
    return out[..., : len(bias)] + bias


VARIANCES = [
    (8, 24, 2, xavier_uniform_parts(3)),
    (36, 9, 3, nn.initializers.xavier_uniform()),
    (7, 18, 2, nn.initializers.normal(0.02)),
    (16, 16, 4, nn.initializers.he_normal()),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(("inputs", "features", "nblocks", "init"), VARIANCES)
def test_outputs_start_with_the_variance_of_the_dense_map(inputs, features, nblocks, init):
    check_variance(Monarch(nblocks), inputs, features, init)


@pytest.mark.parametrize(("inputs", "features", "nblocks"), [(64, 96, 4), (90, 27, 3), (61, 43, 3)])
def test_variance_in_closed_form(inputs, features, nblocks):
    """q/n paths to each entry, each of variance (n/in) * var(kernel_2), of an output's own column of the dense draw."""
    column = lambda key, shape, dtype: jnp.broadcast_to(jnp.arange(1.0, 1 + shape[1], dtype=dtype), shape)  # noqa: E731
    _, params = initialise(Monarch(nblocks), inputs, features, kernel_init=column)
    (n, q, _), (_, s, _) = factor_shapes(inputs, features, nblocks)
    np.testing.assert_allclose(np.std(params["kernel_1"]), (n / inputs) ** 0.5, rtol=0.05)
    scale = (inputs / q) ** 0.5
    want = np.pad(np.arange(1.0, features + 1), (0, n * s - features)).reshape(s, n).T * scale
    np.testing.assert_allclose(params["kernel_2"], np.broadcast_to(want[..., None], (n, s, q)), rtol=1e-6)
    np.testing.assert_allclose((q / n) * (n / inputs) * scale**2, 1, rtol=1e-12)


def test_zeros_stay_zeros_and_learn():
    layer, params = initialise(Monarch(2), 8, 8, kernel_init=nn.initializers.zeros)
    assert not np.any(jax.jit(Monarch(2).to_dense)(params)[0])
    loss = lambda p: jnp.sum(layer.apply({"params": p}, jnp.ones((1, 8))))  # noqa: E731
    assert np.all(jax.jit(jax.grad(loss))(params)["kernel_2"])


@pytest.mark.parametrize(("shape", "features", "nblocks"), SIZES[1:4])
def test_from_dense_is_exact_on_monarch_matrices(shape, features, nblocks):
    spec, inputs = Monarch(nblocks), shape[-1]
    _, params = initialise(spec, inputs, features)
    kernel, bias = spec.to_dense(params)
    back = spec.from_dense(kernel[:inputs], bias)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), back) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    np.testing.assert_allclose(spec.to_dense(back)[0][:inputs], kernel[:inputs], atol=1e-6)
    np.testing.assert_array_equal(back["bias"], bias)


class Perceptron(nn.Module):
    specs: Any
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        bias = {"bias_init": nn.initializers.normal(1.0), "dtype": self.dtype}
        h = self.specs[0](self.hidden, name="mlp_in", **bias)(x)
        return self.specs[1](x.shape[-1], name="mlp_out", **bias)(jax.nn.relu(h))


PAIRS = [
    (8, 16, 2, "float32"),
    pytest.param(8, 16, 2, "bfloat16", marks=pytest.mark.slow),
    pytest.param(18, 9, 3, "float32", marks=pytest.mark.slow),
    (11, 16, 2, "float32"),  # padded outside
    (8, 10, 2, "float32"),  # does not fit: natural order
    pytest.param(8, 11, 2, "float32", marks=pytest.mark.slow),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(("width", "hidden", "nblocks", "dtype"), PAIRS)
def test_a_pair_is_the_same_function_of_the_same_parameters(rng, width, hidden, nblocks, dtype):
    spec = Monarch(nblocks, "xla")
    both = pair(spec, hidden)
    fits = hidden % spec.nblocks**2 == 0
    assert (both == (spec, spec)) is not fits
    assert hash(both) == hash(pair(spec, hidden)) and both == pair(spec, hidden)
    x = jnp.asarray(rng.standard_normal((2, 3, width)), dtype)
    one, other = (Perceptron(specs, hidden, dtype) for specs in ((spec, spec), both))
    params, same = jax.jit(lambda key: [nn.meta.unbox(m.init(key, x)["params"]) for m in (one, other)])(
        jax.random.key(0)
    )
    jax.tree.map(np.testing.assert_array_equal, params, same)

    def run(module, params, x):
        y, pull = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return y, *pull(jnp.ones_like(y))

    found = jax.jit(lambda *args: (run(other, *args), run(one, *args)))(params, x)
    for got, want in zip(*map(jax.tree.leaves, found), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(want.astype(jnp.float32)))))
        atol = scale * {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=atol)
    if fits:
        assert both[0].blocked_output and both[1].input_parts == spec.nblocks
        kernel = spec.to_dense(params["mlp_in"])[0]
        np.testing.assert_array_equal(kernel, both[0].to_dense(params["mlp_in"])[0])


def test_values_and_sentences():
    assert Monarch(8) == Monarch(8) != Monarch() and hash(Monarch(8)) == hash(Monarch(8))
    table = config.Choice({"monarch": Monarch})
    for text in ("monarch(8)", "monarch(nblocks=8)", {"name": "monarch", "nblocks": 8}):
        assert config.parse(Annotated[Any, table], text) == Monarch(8)
    with pytest.raises(UserError, match=r"unknown key .linear.blocked."):
        config.parse(Annotated[Any, table], "monarch(blocked=True)", "linear")
    with pytest.raises(UserError, match=r"linear\.nblocks=1 is not allowed; .* one is 'dense'"):
        config.parse(Annotated[Any, table], "monarch(1)", "linear")
    with pytest.raises(
        UserError, match=r"nblocks=4 does not divide the 2 rows of a block of the map 8 -> 10; .* nblocks=3"
    ):
        initialise(Monarch(4), 8, 10)
    with pytest.raises(UserError, match="implementation"):
        initialise(Monarch(2, implementation="nowhere"), 8, 8)
