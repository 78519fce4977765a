"""Step by step decoding is the model itself: logits with the cache of keys and values equal those without."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.types import UserError

LENGTH = 7


def create(pooling="shared", split=True, dtype="float32", **text):
    vit = {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 24, "num_classes": 0}
    tower = {"vocab_size": 13, "length": LENGTH, "width": 16, "depth": 1, "heads": 4, "mlp_dim": 24, "pool": "cls"}
    decoder = {"depth": 1, "heads": 2, "mlp_dim": 40, "split": split}
    sizes = {"embed_dim": 12, "queries": 5, "pool_heads": 3, "pooling": pooling}
    model = models.create("coca", image_tower=vit, text_tower=tower | text, decoder=decoder, **sizes)
    return models.replace_in_towers(model, dtype=dtype)


def parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, LENGTH), jnp.int32))
    rng = np.random.default_rng(0)

    def one(path, s):
        scale = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(scale + rng.normal(scale=0.3, size=s.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(shapes["params"]))


@functools.partial(jax.jit, static_argnames=("model",))
def step(model, variables, tokens, memory, start):
    """Logits of the tokens from ``start`` on, and the variables for those after them."""
    mutable = ["cache"] if "cache" in variables else ["cache", "memory"]
    options = {"start": start, "length": LENGTH, "method": "next_logits", "mutable": mutable}
    logits, changed = model.apply(variables, tokens, memory, **options)
    return logits, {**variables, **changed}


def stepwise(model, params, text, memory, sizes):
    """Logits of the tokens in portions of ``sizes``, and the variables at the end."""
    variables, logits, start = {"params": params}, [], 0
    for size in sizes:
        new, variables = step(model, variables, text[:, start : start + size], memory, start)
        logits.append(new)
        start += size
    return jnp.concatenate(logits, axis=1), variables


@functools.partial(jax.jit, static_argnames=("model",))
def whole_logits(model, params, text, memory):
    return model.apply({"params": params}, text, memory, method="caption_logits")


def case(model, b=3, n=LENGTH):
    rng = np.random.default_rng(1)
    text = jnp.asarray(rng.integers(1, 13, (b, n)), jnp.int32)
    image = jnp.asarray(rng.normal(size=(b, 8, 8, 3)), jnp.float32)
    params = parameters(model)
    memory = jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, image)[1]
    whole = whole_logits(model, params, text, memory)
    assert whole.dtype == jnp.float32 and whole.shape == (b, n, 13)
    return params, text, memory, whole


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("fields", "b", "sizes"),
    [
        ({"pooling": "shared", "split": True}, 3, (1,) * 7),
        ({"pooling": "cascade", "split": False}, 2, (1, 3, 2)),
        pytest.param(
            {"pooling": "parallel", "split": True, "pool": "end", "end_id": 2}, 1, (4, 1, 1), marks=pytest.mark.slow
        ),
        pytest.param({"pooling": "shared", "split": False, "pool": "last"}, 5, (7,), marks=pytest.mark.slow),
    ],
)
def test_cached_logits_are_those_of_the_whole_text(fields, b, sizes):
    model = create(**fields)
    params, text, memory, whole = case(model, b, sum(sizes))
    got, kept = stepwise(model, params, text, memory, sizes)
    np.testing.assert_allclose(got, whole, atol=1e-5)
    assert np.ptp(whole) > 1
    cache, projected = (jax.tree.leaves(kept[k]) for k in ("cache", "memory"))
    assert {x.shape for x in cache} == {(b, LENGTH, 4, 4), (b, LENGTH, 2, 8)} and len(cache) == 2 * 2
    assert {x.shape for x in projected} == {(b, memory.shape[1], 2, 8)} and len(projected) == 2


@pytest.mark.thorough
def test_in_bfloat16():
    model = create(dtype="bfloat16")
    params, text, memory, whole = case(model)
    exact = whole_logits(create(), params, text, memory.astype(jnp.float32))
    got, kept = stepwise(model, params, text, memory, (1,) * 7)
    assert {x.dtype for x in jax.tree.leaves((kept["cache"], kept["memory"]))} == {jnp.dtype("bfloat16")}
    rounding = np.abs(whole - exact).max()
    assert np.abs(got - whole).max() <= 2 * rounding < 0.1 * np.ptp(exact)


def test_captions_of_one_image_share_its_memory():
    """Beams: after the first token there are W rows of tokens for each image, each with its own past."""
    model = create()
    params, text, memory, _ = case(model)
    rng = np.random.default_rng(2)
    texts = np.concatenate([np.repeat(text[:, :1], 2, 0), rng.integers(1, 13, (6, 3))], axis=1).astype(np.int32)
    _, kept = step(model, {"params": params}, text[:, :1], memory, 0)
    kept["cache"] = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), kept["cache"])
    got, _ = step(model, kept, texts[:, 1:], memory, 1)
    whole = whole_logits(model, params, texts, jnp.repeat(memory, 2, axis=0))
    np.testing.assert_allclose(got, whole[:, 1:], atol=1e-5)


def test_the_cache_is_no_part_of_the_parameters():
    model = create()
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, LENGTH), jnp.int32))
    assert set(made) == {"params"}


def test_a_text_tower_that_sees_ahead_is_a_mistake():
    model = create(causal=False)
    with pytest.raises(UserError, match=r"must not see the tokens it is to say; set model\.text_tower\.causal=True"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, LENGTH), jnp.int32))
