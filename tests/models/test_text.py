"""Text towers: what each pooling sees, causality, padding, and a float64 transformer written anew."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.text import TextTransformer, real
from vit_jax.types import UsageError, UserError

END = 3
FIELDS = {"vocab_size": 11, "length": 7, "end_id": END, "width": 12, "depth": 2, "heads": 3, "mlp_dim": 20}


def tower(**fields):
    return TextTransformer(**{**FIELDS, **fields})


def init(model, seed=0):
    """Unboxed random parameters, biases and scales included."""
    text = jnp.zeros((1, model.length), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), text)["params"])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.5, jnp.float32), shapes)


TEXT = jnp.asarray([[5, 0, 6, END, 0, 0, 0], [9, 8, END, 9, END, 1, 0], [1, 2, 4, 5, 6, 7, END]], jnp.int32)
"""Padding of several kinds: a pad id inside a text, other tokens and a second end after it, none at all."""
LENGTHS = (4, 3, 7)


def test_a_text_ends_with_its_first_end_token():
    expected = np.arange(7)[None] < np.asarray(LENGTHS)[:, None]
    np.testing.assert_array_equal(real(TEXT, END), expected)
    assert real(jnp.zeros((2, 5), jnp.int32), END).all()  # no end: nothing is padding


def reference(params, text, *, causal, heads=3):
    """The tower's states in float64 NumPy, by loops over heads (Vaswani et al. 2017; pre-norm)."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    erf = np.vectorize(math.erf)

    def norm(x, w):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w["scale"] + w["bias"]

    def attend(x, w):
        n, d = x.shape
        size, out = d // heads, []
        y = (x @ w["qkv"]["kernel"] + w["qkv"]["bias"]).reshape(n, heads, 3, size)
        for h in range(heads):
            q, k, v = y[:, h, 0], y[:, h, 1], y[:, h, 2]
            logits = q @ k.T / np.sqrt(size)
            if causal:
                logits[np.triu_indices(n, 1)] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v)
        return np.concatenate(out, -1) @ w["out"]["kernel"] + w["out"]["bias"]

    states = []
    for row in np.asarray(text):
        x = p["token"]["embedding"][row] + p["position"]["embedding"][0, : len(row)]
        for i in range(FIELDS["depth"]):
            b = p["encoder"][f"block_{i}"]
            x = x + attend(norm(x, b["norm_attention"]), b["attention"])
            h = norm(x, b["norm_mlp"]) @ b["mlp"]["mlp_in"]["kernel"] + b["mlp"]["mlp_in"]["bias"]
            h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
            x = x + h @ b["mlp"]["mlp_out"]["kernel"] + b["mlp"]["mlp_out"]["bias"]
        states.append(norm(x, p["encoder"]["norm"]))
    return np.stack(states)


@pytest.mark.parametrize("causal", [True, False])
def test_equals_a_float64_transformer(run, causal):
    model = tower(causal=causal)
    params = init(model)
    found = run(model, params, TEXT)
    expected = reference(params, TEXT, causal=causal)
    np.testing.assert_allclose(found.tokens, expected, atol=2e-5)
    ends = expected[np.arange(3), np.asarray(LENGTHS) - 1]
    np.testing.assert_allclose(found.pooled, ends, atol=2e-5)
    rows = {"last": expected[:, -1], "first": expected[:, 0]}
    rows["gap"] = np.stack([x[:n].mean(0) for x, n in zip(expected, LENGTHS, strict=True)])
    for pool, pooled in rows.items():
        np.testing.assert_allclose(run(tower(causal=causal, pool=pool), params, TEXT).pooled, pooled, atol=2e-5)


def test_what_follows_the_end_changes_nothing_that_is_pooled(run):
    for pool in ("end", "cls"):
        model = tower(pool=pool)
        params = init(model)
        one = run(model, params, TEXT).pooled
        other = run(model, params, TEXT.at[0, 4:].set(7).at[1, 3:].set(2)).pooled
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(one - run(model, params, TEXT.at[:, 1].set(10)).pooled).max() > 1e-2


def test_cls_sees_the_text_and_itself_and_its_states_are_not_normed(run):
    model = tower(pool="cls", depth=1)
    params = init(model)
    found = run(model, params, TEXT)
    assert (
        found.tokens.shape == (3, 7, 12)
        and "norm" not in params["encoder"]
        and params["position"]["embedding"].shape == (1, 8, 12)
    )
    n = LENGTHS[0]  # the same text without padding, its cls at the same position
    short = {**params, "position": {"embedding": jnp.delete(params["position"]["embedding"], slice(n, 7), axis=1)}}
    alone = run(tower(pool="cls", depth=1, length=n), short, TEXT[:1, :n])
    np.testing.assert_allclose(found.pooled[:1], alone.pooled, atol=1e-5)
    np.testing.assert_allclose(found.tokens[:1, :n], alone.tokens, atol=1e-5)


def test_the_shifted_mask_of_the_published_weights(run):
    """It hides cls from itself and shows the first padding token; without padding both masks are the same."""
    right, shifted = tower(pool="cls"), tower(pool="cls", cls_mask="shifted")
    params = init(right)
    a, b = (run(m, params, TEXT).pooled for m in (right, shifted))
    assert np.abs(a - b)[:2].max() > 1e-3
    np.testing.assert_allclose(a[2], b[2], atol=1e-6)
    changed = run(shifted, params, TEXT.at[0, 4].set(7)).pooled
    assert np.abs(changed - b)[0].max() > 1e-3
    unseen = run(shifted, params, TEXT.at[0, 5].set(7)).pooled
    np.testing.assert_allclose(unseen[0], b[0], atol=1e-6)


@pytest.mark.thorough
def test_options_train_and_shorter_texts(run):
    model = tower(pool="map", dropout=0.3, drop_path=0.2, layer_scale=0.1)
    params = init(model)
    one, two = (run(model, params, TEXT, train=True, rngs={"dropout": jax.random.key(k)}).pooled for k in (0, 1))
    assert np.abs(one - two).max() > 1e-3
    assert run(model, params, TEXT).pooled.shape == (3, 12)
    short = run(tower(), init(tower()), TEXT[:, :4])
    np.testing.assert_allclose(short.tokens, run(tower(), init(tower()), TEXT).tokens[:, :4], atol=1e-6)


def test_scan_remat_and_bfloat16(run):
    params = init(tower())
    expected = run(tower(), params, TEXT).pooled
    found = run(tower(scan=True, remat="full"), params, TEXT).pooled
    np.testing.assert_allclose(found, expected, atol=1e-5)
    low = run(tower(dtype="bfloat16"), params, TEXT)
    assert low.tokens.dtype == jnp.bfloat16 and low.pooled.dtype == jnp.float32
    np.testing.assert_allclose(low.pooled, expected, atol=0.3)


def test_mistakes(run):
    with pytest.raises(UserError, match="a text of 8 tokens is longer than the 7 positions"):
        run(tower(), init(tower()), jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(UsageError, match="unknown pool of the text tower 'ends'; did you mean 'end'"):
        init(tower(pool="ends"))
    outside = run(tower(), init(tower()), TEXT.at[0, 0].set(11)).pooled
    assert np.isnan(outside[0]).all() and np.isfinite(outside[1:]).all()
