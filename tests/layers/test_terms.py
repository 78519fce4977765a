"""Terms of the logits against their formulas in float64, and where they are ordinary attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.attention import MultiHeadAttention, attention_weights
from vit_jax.layers.terms import Gaussian, LogitBiasSpec, Signed, logits, signed, squared_distances


def softmax(p):
    z = np.exp(p - p.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def heads(rng, tokens, size=5):
    return [rng.normal(size=(2, tokens, 3, size)) for _ in range(3)]


def products(q, k):
    return np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])


def attended(term, q, k, v):
    """As the module has it, from the term's parts."""
    weights = attention_weights(q, k, bias=term.bias) * term.factor
    return weights, jnp.einsum("bknm,bmke->bnke", weights, v)


def test_signed_is_its_formula_in_value_and_gradient(rng):
    q, k, v = heads(rng, 6)
    p = products(q, k)
    want = np.sign(p) * softmax(np.abs(p))
    run = jax.jit(lambda q, k, v: attended(signed(q, k), q, k, v))
    low = [x.astype(np.float32) for x in (q, k, v)]
    weights, _ = run(*low)
    np.testing.assert_allclose(weights, want, atol=1e-6)
    np.testing.assert_allclose(np.abs(weights).sum(-1), 1, rtol=1e-5)
    assert (np.asarray(weights) < 0).any()
    g = rng.normal(size=v.shape)
    value = lambda q: np.sum(np.einsum("bknm,bmke->bnke", np.sign(p) * softmax(np.abs(products(q, k))), v) * g)  # noqa: E731
    grad = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attended(signed(q, k), q, k, v)[1] * g.astype(np.float32))))(*low)
    for at in ((0, 0, 0, 0), (1, 3, 2, 4), (0, 5, 1, 2)):
        step = np.zeros_like(q)
        step[at] = 1e-5
        np.testing.assert_allclose(grad[at], (value(q + step) - value(q - step)) / 2e-5, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("cls", [1, 0])
def test_a_mixture_is_its_formula(rng, cls):
    q, k, _ = heads(rng, 9 + cls)
    a, s = rng.normal(size=(2, 3)), rng.uniform(0.5, 3, (2, 3))
    params = {"amplitude": jnp.asarray(a, jnp.float32), "sigma": jnp.asarray(s, jnp.float32)}
    low = [x.astype(np.float32) for x in (q, k)]
    got = jax.jit(lambda q, k: logits(q, k) + Gaussian(2)(name="x").apply({"params": params}, q, k))(*low)
    mask = np.ones((3, 9 + cls, 9 + cls))
    for i, j in np.ndindex(9, 9):
        r = np.hypot(i // 3 - j // 3, i % 3 - j % 3)
        mask[:, i + cls, j + cls] = (a * np.exp(-(r**2) / 2) ** (1 / (s**2 + 1e-5))).sum(0)
    np.testing.assert_allclose(got, products(q, k) * mask, atol=1e-5)
    assert squared_distances(10).shape == (9, 9)


@pytest.mark.thorough
def test_neither_changes_attention_where_it_should_not(rng):
    """Signed with logits above 0 is softmax, and a mixture as wide as the world multiplies with 1."""
    q, k, v = (np.abs(x).astype(np.float32) for x in heads(rng, 4))
    plain = jax.jit(attention_weights)(q, k)
    np.testing.assert_allclose(jax.jit(lambda *x: attended(signed(*x[:2]), *x)[0])(q, k, v), plain, atol=1e-6)
    module = Gaussian(sigma=1e6)(name="x")
    params = jax.jit(module.init)(jax.random.key(0), q, k)
    term = jax.jit(module.apply)(params, q, k)
    np.testing.assert_allclose(term, 0, atol=1e-5)


@pytest.mark.thorough
def test_the_module_multiplies_and_shows_what_it_has_multiplied(rng):
    x = rng.normal(size=(2, 6, 8)).astype(np.float32)
    layer = MultiHeadAttention(2, logit_bias=Signed())
    params = jax.jit(layer.init)(jax.random.key(0), x)
    run = jax.jit(lambda p, x: layer.apply(p, x, mutable=["intermediates"]))
    shown, state = run(params, x)
    weights = np.asarray(state["intermediates"]["attention"][0])
    np.testing.assert_allclose(np.abs(weights).sum(-1), 1, rtol=1e-5)
    assert (weights < 0).any()
    np.testing.assert_array_equal(jax.jit(layer.apply)(params, x), shown)


@pytest.mark.thorough
def test_parameters_of_a_model(rng):
    fields = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "num_classes": 3, "pool": "gap"}
    model = models.create("vit", **fields, logit_bias="gaussian(3)", positions="none")
    image = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    start = params["encoder"]["block_0"]["attention"]["logit_bias"]
    np.testing.assert_array_equal(start["sigma"].unbox(), [[10, 10], [20, 20], [40, 40]])
    np.testing.assert_allclose(start["amplitude"].unbox(), np.full((3, 2), 1 / 3))
    loss = lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, image, method="embed_image")))  # noqa: E731
    grad = jax.jit(jax.grad(loss))(params)["encoder"]["block_0"]["attention"]["logit_bias"]
    assert all((np.abs(grad[name].unbox()) > 0).all() for name in ("amplitude", "sigma"))
    role = model.roles(params)["encoder"]["block_0"]["attention"]["logit_bias"]["sigma"]
    assert "scale" in str(role)  # which does not decay
    larger = jax.eval_shape(lambda p: model.apply({"params": p}, jnp.zeros((1, 16, 16, 3))), params)
    assert larger.shape == (1, 3)


def test_of_a_configuration():
    assert config.parse(LogitBiasSpec, "gaussian(2, sigma=4.0)", "x") == Gaussian(2, 4.0)
    assert config.parse(LogitBiasSpec, "signed", "x") == Signed()
