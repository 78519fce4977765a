"""Attention against float64 NumPy, its gradient against automatic differentiation, masks, and the module."""

from __future__ import annotations

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.layers import attention as A
from vit_jax.layers.attention import MultiHeadAttention, _summed_keys, attention, attention_weights, split_heads
from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.types import UserError


def draw(rng, n=5, m=7, dtype="float32"):
    return [jnp.asarray(rng.standard_normal((2, s, 3, 4)), dtype) for s in (n, m, m)]


def reference(q, k, v, mask=None):
    """Float64; rows without anything to attend to are zero."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * (1.0 if mask is None else np.asarray(mask, np.float64))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("bknm,bmke->bnke", weights, v), weights


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 3), (7, 7)])
def test_equals_float64(rng, dtype, atol, n, m):
    q, k, v = draw(rng, n, m, dtype)
    out = jax.jit(attention)(q, k, v)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), reference(q, k, v)[0], atol=atol)
    np.testing.assert_allclose(jax.jit(attention_weights)(q, k), reference(q, k, v)[1], atol=atol)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 1, 1, 7), (5, 7)])
def test_masks_broadcast_and_empty_rows_are_zero_without_nan(rng, shape):
    q, k, v = draw(rng)
    mask = rng.random(shape) < 0.5
    mask.reshape(-1, shape[-1])[0] = False
    wide = np.broadcast_to(mask, (2, 3, 5, 7))
    fn = lambda q, k, v: attention(q, k, v, mask=jnp.asarray(mask))  # noqa: E731
    np.testing.assert_allclose(jax.jit(fn)(q, k, v), reference(q, k, v, wide)[0], atol=1e-6)
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(fn(*a))), (0, 1, 2)))(q, k, v)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (2, 5)])
def test_causal_sees_the_past_only(rng, n, m):
    q, k, v = draw(rng, n, m)
    triangle = np.arange(m)[None] <= np.arange(n)[:, None] + (m - n)
    causal = jax.jit(functools.partial(attention, causal=True))
    np.testing.assert_allclose(causal(q, k, v), reference(q, k, v, triangle)[0], atol=1e-6)
    first = causal(q, k, v, mask=jnp.zeros((1, 1, 1, m), bool).at[..., 0].set(True))
    np.testing.assert_allclose(first, jnp.broadcast_to(v[:, :1], first.shape), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_gradient_equals_automatic_differentiation(rng, masked, dtype, atol):
    q, k, v = draw(rng, dtype=dtype)
    mask = jnp.asarray(rng.random((2, 1, 5, 7)) < 0.7) if masked else None

    def ours(q, k, v):
        return jnp.sum(jnp.sin(attention(q, k, v, mask=mask).astype(jnp.float32)))

    def auto(q, k, v):
        weights = attention_weights(q, k, mask=mask)
        return jnp.sum(jnp.sin(jnp.einsum("bknm,bmke->bnke", weights, v)))

    got = jax.jit(jax.grad(ours, (0, 1, 2)))(q, k, v)
    want = jax.jit(jax.grad(auto, (0, 1, 2)))(*(a.astype(jnp.float32) for a in (q, k, v)))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=atol)


def test_unknown_implementation_names_the_known():
    x = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(UserError, match="unknown implementation of attention 'xlb'; did you mean 'xla'"):
        attention(x, x, x, implementation="xlb")
    assert set(A.IMPLEMENTATIONS) >= {"xla"}


def test_module_equals_flax(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 12)), jnp.float32)
    flax_module = nn.MultiHeadDotProductAttention(num_heads=3)
    theirs = jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32) * 0.3, flax_module.init(jax.random.key(0), x)
    )["params"]
    parts = [theirs[n] for n in ("query", "key", "value")]
    ours = {
        "qkv": {  # heads, then which of the three, then the features of a head
            "kernel": jnp.stack([p["kernel"] for p in parts], 2).reshape(12, 36),
            "bias": jnp.stack([p["bias"] for p in parts], 1).reshape(36),
        },
        "out": {"kernel": theirs["out"]["kernel"].reshape(12, 12), "bias": theirs["out"]["bias"]},
    }
    got = jax.jit(MultiHeadAttention(3).apply)({"params": ours}, x)
    np.testing.assert_allclose(got, jax.jit(flax_module.apply)({"params": theirs}, x), atol=1e-5)


def test_module_cross_attention_and_weights_on_request(rng):
    x, context = (jnp.asarray(rng.standard_normal((2, n, d)), jnp.float32) for n, d in ((3, 8), (5, 6)))
    module = MultiHeadAttention(2)
    boxed = jax.jit(module.init)(jax.random.key(0), x, context=context)
    shapes = {k: v["kernel"].value.shape for k, v in boxed["params"].items()}
    assert shapes == {"q": (8, 8), "kv": (6, 16), "out": (8, 8)} and set(boxed) == {"params"}
    apply = functools.partial(module.apply, mutable=["intermediates"])
    out, state = jax.jit(apply)({"params": boxed["params"]}, x, context=context)
    (weights,) = state["intermediates"]["attention"]
    assert out.shape == x.shape and weights.shape == (2, 2, 3, 5)
    np.testing.assert_allclose(jnp.sum(weights, -1), 1.0, atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="width 10 is not divisible by 3 heads"):
        jax.jit(MultiHeadAttention(3).init)(jax.random.key(0), jnp.ones((1, 2, 10)))


@pytest.mark.parametrize(
    "parts", [(1, 1, 1, 1, 1), (2, 3), *(pytest.param(p, marks=pytest.mark.slow) for p in ((5,), (3, 1, 1)))]
)
def test_a_cache_gives_what_causal_attention_gives(rng, parts):
    """Keys and values of earlier calls are kept, in pieces of any size; those of a context are computed once."""
    x = jnp.asarray(rng.standard_normal((2, 5, 12)), jnp.float32)
    context = jnp.asarray(rng.standard_normal((2, 4, 7)), jnp.float32)
    for given in (None, context):
        module = MultiHeadAttention(3, causal=given is None)
        params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x, context=given)["params"])
        expected = jax.jit(module.apply)({"params": params}, x, context=given)
        variables, found, start = {"params": params}, [], 0

        @jax.jit
        def step(variables, piece, context, start, module=module):
            cache = A.KVCache(start, 8)
            return module.apply(variables, piece, context=context, cache=cache, mutable=["cache", "memory"])

        for n in parts:
            piece, start = x[:, start : start + n], start + n
            out, kept = step(variables, piece, context=given, start=jnp.int32(start - n))
            variables = {"params": params, **kept}
            found.append(out)
            given = None if given is None else jnp.full_like(given, jnp.nan)  # not looked at again
        np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=1e-6)
        shape = kept["cache"]["key"].shape if module.causal else kept["memory"]["key"].shape
        assert shape == ((2, 8, 3, 4) if module.causal else (2, 4, 3, 4))


def test_probabilities_that_are_shown_are_used(rng):
    """Asking for them changes no bit of the result; what is done to them changes it, and their gradient is exact."""
    q, k, v = draw(rng, 5, 5)
    mask = jnp.asarray(rng.random((2, 1, 5, 5)) < 0.7)
    plain = jax.jit(functools.partial(attention, mask=mask))(q, k, v)
    seen = jax.jit(functools.partial(attention, mask=mask, through=lambda w: w))(q, k, v)
    np.testing.assert_array_equal(seen, plain)
    uniform = functools.partial(attention, mask=mask, through=lambda w: jnp.full_like(w, 0.2))
    want = jnp.broadcast_to(jnp.mean(v, 1, keepdims=True), v.shape)
    np.testing.assert_allclose(jax.jit(uniform)(q, k, v), want, atol=1e-6)
    grad = jax.jit(jax.grad(lambda zero: jnp.sum(attention(q, k, v, mask=mask, through=lambda w: w + zero) ** 2)))
    given = np.einsum("bnke,bmke->bknm", 2 * np.asarray(plain, np.float64), v)
    np.testing.assert_allclose(grad(jnp.zeros((2, 3, 5, 5))), given, atol=1e-5)


def test_the_module_is_perturbed_on_request(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    module = MultiHeadAttention(2)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    plain = jax.jit(module.apply)(variables, x)
    out, zeros = jax.jit(functools.partial(module.apply, mutable=["perturbations"]))(variables, x)
    np.testing.assert_array_equal(out, plain)
    assert jax.tree.map(jnp.shape, zeros) == {"perturbations": {"attention": (2, 2, 5, 5)}}
    less = {"perturbations": {"attention": jnp.full((2, 2, 5, 5), -0.1)}}
    moved, state = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))({**variables, **less}, x)
    np.testing.assert_allclose(jnp.sum(state["intermediates"]["attention"][0], -1), 0.5, atol=1e-6)
    assert float(jnp.max(jnp.abs(moved - plain))) > 1e-3


def spec(tokens, size, dtype="bfloat16"):
    return (jax.ShapeDtypeStruct((2, tokens, 3, size), dtype),) * 3


@pytest.mark.parametrize(
    ("args", "mask", "reason"),
    [
        (spec(197, 64), None, None),
        (spec(197, 64, "float32"), None, "not 'cudnn': the compute type is float32, not bfloat16 or float16"),
        (spec(197, 68), None, "not 'cudnn': heads have 68 channels, not a multiple of 8 up to 128"),
        (spec(197, 136), None, "not 'cudnn': heads have 136 channels"),
        (spec(197, 64), jax.ShapeDtypeStruct((1, 1, 197, 197), bool), "not 'cudnn': there is a mask"),
        (spec(50, 64), None, "not 'cudnn': it pays from 128 tokens on, here are 50"),
    ],
)
def test_gpus_use_cudnn_where_it_pays(monkeypatch, args, mask, reason):
    said = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch, "say", said.append)
    run = dispatch.choose("attention", A.IMPLEMENTATIONS, None, *args, mask)
    assert run is (A.attention_cudnn if reason is None else A.attention_xla)
    assert said == [] if reason is None else reason in said[0]


@pytest.mark.parametrize(("n", "m"), [(6, 8), (5, 7), (6, 7)])
def test_cudnn_passes_over_what_odd_numbers_are_filled_up_with(monkeypatch, rng, n, m):
    attend, shapes = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, implementation, **lengths):
        assert implementation == "cudnn"
        shapes.append((q.shape[1], k.shape[1]))
        return attend(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = draw(rng, n=n, m=m)
    both = [
        jax.jit(jax.value_and_grad(lambda q, k, v, f=f: jnp.sum(jnp.sin(f(q, k, v, None))), (0, 1, 2)))(q, k, v)
        for f in (A.attention_cudnn, A.attention_xla)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)
    assert set(shapes) == {(6, 8)}


@pytest.mark.parametrize("linear", [Dense(), Monarch(2)])
def test_the_layout_of_a_gpu_changes_nothing(monkeypatch, rng, linear):
    x = jnp.asarray(rng.standard_normal((2, 5, 16)), jnp.float32)
    module = MultiHeadAttention(heads=2, qkv_linear=linear)
    params = jax.jit(module.init)(jax.random.key(0), x)
    want = jax.jit(lambda p, x: module.apply(p, x))(params, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = jax.jit(lambda p, x: module.apply(p, x))(params, x)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("capability", "fused"), [("8.0", True), ("12.0", True), ("7.5", False), ("gfx90a", False)])
def test_gpus_without_fused_attention_are_left_to_xla(monkeypatch, capability, fused):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    run = dispatch.choose("attention", A.IMPLEMENTATIONS, None, *spec(197, 64), None)
    assert run is (A.attention_cudnn if fused else A.attention_xla)


@pytest.mark.parametrize(
    ("bias", "norm", "linear"), [("qv", "layer", Dense()), ("none", "rms", Dense()), ("qv", None, Monarch(2))]
)
def test_biases_and_norms_of_queries_and_keys_equal_float64(rng, bias, norm, linear):
    """A layer without biases and norms whose inputs the formula treats instead."""
    x = jnp.asarray(rng.standard_normal((2, 5, 16)), jnp.float32)
    module = MultiHeadAttention(2, qkv_linear=linear, qkv_bias=bias, qk_norm=norm, norm_epsilon=1e-3)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)
    assert set(params) == {"qkv", "out"} | ({"bias_q", "bias_v"} if bias == "qv" else set()) | (
        {"norm_q", "norm_k"} if norm else set()
    )
    assert "bias" not in params["qkv"]
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    kernel = np.asarray(linear.to_dense(params["qkv"])[0], np.float64).reshape(16, 2, 3, 8)
    q, k, v = (np.einsum("bnd,dke->bnke", np.asarray(x, np.float64), kernel[:, :, i]) for i in range(3))
    if bias == "qv":
        q, v = (y + p[f"bias_{name}"].reshape(2, 8) for y, name in ((q, "q"), (v, "v")))
    for name, y in (("q", q), ("k", k)) if norm else ():
        y -= y.mean(-1, keepdims=True) if norm == "layer" else 0
        y /= np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3)
        y *= p[f"norm_{name}"]["scale"]
        y += p[f"norm_{name}"].get("bias", 0)
    y = reference(q, k, v)[0].reshape(2, 5, 16)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, y @ p["out"]["kernel"] + p["out"]["bias"], atol=2e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_sum_of_the_keys_as_a_product(rng, blocks):
    """Which a TPU gets, however the channels of heads come."""
    qkv = jnp.asarray(rng.standard_normal((2, 5, 3 * 3 * 4)), "bfloat16")
    _, keys, _ = split_heads(qkv, 3, 3, blocks)
    want = np.asarray(keys, np.float64).sum(2)
    np.testing.assert_allclose(_summed_keys(qkv, 3, blocks), want, atol=1e-6)
