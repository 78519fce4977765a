"""Pooling against NumPy and timm, and as a symmetric function of the tokens."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.pool import AttentionPool, QueryPool, average


def test_average_sums_in_float32():
    x = jnp.ones((1, 1000, 1), jnp.bfloat16) * 1.0078125
    assert average(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(average(x), jnp.full((1, 1), 1.0078125, jnp.bfloat16))


def test_attention_pool_ignores_order_and_masked_tokens(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    module = AttentionPool(2, 16)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
    apply = jax.jit(module.apply)
    full = apply(params, x)
    assert full.shape == (2, 8)
    np.testing.assert_allclose(apply(params, x[:, ::-1]), full, atol=1e-5)
    mask = jnp.asarray([[True] * 3 + [False] * 2] * 2)
    masked = apply(params, x, mask)
    np.testing.assert_allclose(masked, apply(params, x[:, :3]), atol=1e-5)
    assert float(jnp.max(jnp.abs(masked - full))) > 1e-3


@pytest.mark.parametrize(("activation", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_attention_pool_is_timms(rng, torch, timm, activation, approximate):
    width, heads, epsilon = 8, 2, 0.1
    module = AttentionPool(heads, 16, activation=activation, norm_epsilon=epsilon)
    x = jnp.asarray(rng.standard_normal((2, 5, width)), jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    p = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)

    peer = timm.layers.AttentionPoolLatent(
        width,
        num_heads=heads,
        mlp_ratio=2,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=epsilon),
        act_layer=functools.partial(torch.nn.GELU, approximate=approximate),
    )
    kv = p["attention"]["kv"]  # ours: heads, then k and v; timm's: k and v, then heads
    kv = {k: np.swapaxes(v.reshape(*v.shape[:-1], heads, 2, -1), -3, -2).reshape(v.shape) for k, v in kv.items()}
    linear = {"q": p["attention"]["q"], "kv": kv, "proj": p["attention"]["out"]}
    linear |= {"mlp.fc1": p["mlp"]["mlp_in"], "mlp.fc2": p["mlp"]["mlp_out"]}
    theirs = {"latent": p["probe"], "norm.weight": p["norm_mlp"]["scale"], "norm.bias": p["norm_mlp"]["bias"]}
    for name, layer in linear.items():
        theirs |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    peer.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in theirs.items()})
    with torch.no_grad():
        want = peer(torch.tensor(np.asarray(x))).numpy()
    np.testing.assert_allclose(jax.jit(module.apply)({"params": p}, x), want, atol=2e-5)


def test_query_pool_is_attention_of_normed_queries_to_normed_tokens(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 6)), jnp.float32)
    module = QueryPool(3, 8, 2, norm_epsilon=1e-3)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)
    found = jax.jit(module.apply)({"params": params}, x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(a, w):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-3) * w["scale"] + w["bias"]

    q = norm(p["queries"][0], p["norm_queries"]) @ p["attention"]["q"]["kernel"] + p["attention"]["q"]["bias"]
    for row, tokens in zip(found, np.asarray(x, np.float64), strict=True):
        kv = norm(tokens, p["norm_tokens"]) @ p["attention"]["kv"]["kernel"] + p["attention"]["kv"]["bias"]
        kv, heads = kv.reshape(5, 2, 2, 4), []
        for h in range(2):
            logits = q.reshape(3, 2, 4)[:, h] @ kv[:, h, 0].T / 2
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ kv[:, h, 1])
        expected = np.concatenate(heads, -1) @ p["attention"]["out"]["kernel"] + p["attention"]["out"]["bias"]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x[:, ::-1]), found, atol=1e-5)
