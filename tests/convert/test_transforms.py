"""How numbers are laid out elsewhere and here: both ways, and the same map."""

import numpy as np
import pytest

from vit_jax.convert import transforms

K, E, D = 3, 4, 10


def both_ways(transform, *theirs):
    """Ours, after checking that the way back gives the same arrays."""
    ours = transform.into(*theirs)
    for again, x in zip(transform.back(*ours), theirs, strict=True):
        np.testing.assert_array_equal(again, x)
    return ours


def heads(x, w, b):
    """float64 reference: the projections of ``x [N,D]`` by ours, as ``[N, K, parts, E]``."""
    return (x @ w + b).reshape(len(x), K, -1, E)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_projections_of_every_layout_are_the_same_map(rng, parts):
    x = rng.normal(size=(5, D))
    separate = [(rng.normal(size=(K * E, D)), rng.normal(size=K * E)) for _ in range(parts)]
    want = np.stack([(x @ w.T + b).reshape(5, K, E) for w, b in separate], axis=2)
    ws, bs = zip(*separate, strict=True)
    split = transforms.split_linear(K, parts)
    np.testing.assert_allclose(heads(x, *both_ways(split, *ws), *both_ways(split, *bs)), want)
    fused = transforms.fused_linear(K, parts)
    w, b = both_ways(fused, np.concatenate(ws)), both_ways(fused, np.concatenate(bs))
    np.testing.assert_allclose(heads(x, *w, *b), want)
    flax = transforms.split_heads(K, parts)
    w = both_ways(flax, *(w.T.reshape(D, K, E) for w in ws))
    np.testing.assert_allclose(heads(x, *w, *both_ways(flax, *(b.reshape(K, E) for b in bs))), want)


def test_the_other_layouts(rng):
    x, kernel = rng.normal(size=(5, K, E)), rng.normal(size=(K, E, D))
    (out,) = both_ways(transforms.merge_heads(K), kernel)
    np.testing.assert_allclose(x.reshape(5, -1) @ out, np.einsum("nke,ked->nd", x, kernel))
    conv = rng.normal(size=(7, 3, 2, 4))
    assert both_ways(transforms.CONV, conv)[0][1, 3, 2, 6] == conv[6, 2, 1, 3]
    assert both_ways(transforms.LINEAR, rng.normal(size=(2, 5)))[0].shape == (5, 2)
    assert both_ways(transforms.reshape((1, 1, -1), (-1,)), rng.normal(size=(1, 1, 6)))[0].shape == (6,)
    weights = rng.normal(size=(2, K * E, D)), rng.normal(size=(2, K * E, D))
    ours = both_ways(transforms.stacked(transforms.split_linear(K, 2), 2), *weights)
    for i in range(2):
        np.testing.assert_array_equal(ours[i], transforms.split_linear(K, 2).into(weights[0][i], weights[1][i])[0])


def test_queries_keys_and_values_of_one_weight():
    """Rows of their weight are (part, head, channel), ours of keys and values (head, part, channel)."""
    x = np.arange(3 * 2 * 5)[:, None] * np.ones((1, 4), int)
    q, kv = transforms.queries_and_memory(2).into(x)
    assert q.shape == (4, 10) and kv.shape == (4, 20)
    np.testing.assert_array_equal(q[0], np.arange(10))
    np.testing.assert_array_equal(kv[0], np.concatenate([np.arange(i, i + 5) for i in (10, 20, 15, 25)]))
    np.testing.assert_array_equal(transforms.queries_and_memory(2).back(q, kv)[0], x)
    np.testing.assert_array_equal(
        transforms.queries_and_memory(2).back(*transforms.queries_and_memory(2).into(x[:, 0]))[0], x[:, 0]
    )


def test_queries_keys_and_values_by_head():
    both = transforms.queries_and_memory(2)
    x = np.arange(12 * 3, dtype=np.float32).reshape(12, 3)  # rows: q of two heads, k, v; two rows a head
    q, kv = both.into(x)
    np.testing.assert_array_equal(q, x[:4].T)
    np.testing.assert_array_equal(kv.T, x[[4, 5, 8, 9, 6, 7, 10, 11]])  # k and v of a head lie together
    np.testing.assert_array_equal(both.back(q, kv)[0], x)
    bias = both.into(x[:, 0])
    np.testing.assert_array_equal(bias[1], x[[4, 5, 8, 9, 6, 7, 10, 11], 0])
    np.testing.assert_array_equal(both.back(*bias)[0], x[:, 0])
