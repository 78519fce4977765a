"""The permutation search against exhaustive search, chance and its published scale; MLPs it leaves as they are."""

from __future__ import annotations

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.sparse24 import reference
from vit_jax.layers.linear.permutation24 import WAYS, _shares, _tournament, efficacy, kept, permute_hidden, search
from vit_jax.layers.linear.sparse24 import prune
from vit_jax.layers.mlp import MLP
from vit_jax.types import UserError


def test_what_is_kept_is_what_the_mask_keeps(rng):
    kernel = rng.standard_normal((24, 7))
    assert kept(kernel) == pytest.approx(np.abs(kernel)[reference.mask(kernel)].sum())
    low = jnp.asarray(kernel, jnp.bfloat16)
    assert kept(low) == pytest.approx(float(jnp.sum(jnp.abs(prune(low).astype(jnp.float32)))), rel=1e-6)


def test_all_ways_of_two_stripes_are_valued(rng):
    assert len({frozenset(map(frozenset, (w[:4], w[4:]))) for w in WAYS.tolist()}) == len(WAYS) == math.comb(8, 4) / 2
    assert WAYS[0].tolist() == list(range(8))
    rows = np.abs(rng.standard_normal((5, 8, 6000))).astype(np.float32)  # several chunks
    want = [[kept(eight[way]) for way in WAYS] for eight in rows]
    np.testing.assert_allclose(_shares(rows), want, rtol=1e-5)


@pytest.mark.parametrize("players", [2, 3, 6, 9])
def test_everyone_meets_everyone_once(players):
    rounds = _tournament(players)
    assert all(len(set(r.ravel())) == r.size for r in rounds)
    met = sorted(tuple(sorted(pair)) for r in rounds for pair in r.tolist())
    assert met == list(itertools.combinations(range(players), 2))


def test_eight_inputs_reach_the_optimum(rng):
    kernel = rng.standard_normal((8, 3))
    best = max(kept(kernel[list(p)]) for p in itertools.permutations(range(8)) if p[0] == 0 and p[1] < p[2] < p[3])
    assert kept(kernel[search(kernel, rounds=3)]) == pytest.approx(best)


def test_a_permutation_that_was_scrambled_is_found_again(rng):
    # Every output has two weights in every group: there is an order that loses nothing at all.
    kernel = np.zeros((24, 40))
    for group, output in itertools.product(range(6), range(40)):
        kernel[4 * group + rng.permutation(4)[:2], output] = 1 + rng.random(2)
    scrambled = kernel[rng.permutation(24)]
    assert kept(kernel) == pytest.approx(kernel.sum()) and kept(scrambled) < 0.9 * kernel.sum()
    assert kept(scrambled[search(scrambled, rounds=400)]) == pytest.approx(kernel.sum())


def test_published_scale_and_chance():
    # A random [64, 128]: 1,000 random orders reach about 11 %, the published search about 36 %.
    kernel = np.random.default_rng(0).random((64, 128))
    chance = max(efficacy(kernel, np.random.default_rng(i).permutation(64)) for i in range(1000))
    found = search(kernel, rounds=300)
    assert sorted(found) == list(range(64))
    assert 7 < chance < 14 and efficacy(kernel, found) > 34
    assert efficacy(kernel, np.arange(64)) == 0


def test_equal_seeds_agree_longer_searches_lose_nothing(rng):
    kernel = rng.standard_normal((36, 10))  # nine stripes: one sits out each round
    short, settled, long = (search(kernel, rounds=rounds, seed=1) for rounds in (10, 100, 600))
    np.testing.assert_array_equal(short, search(kernel, rounds=10, seed=1))
    assert kept(kernel) < kept(kernel[short]) < kept(kernel[settled])
    assert kept(kernel[settled]) < kept(kernel[long])  # beyond what pairs of stripes can do alone
    np.testing.assert_array_equal(search(kernel, rounds=0), np.arange(36))
    np.testing.assert_array_equal(search(kernel[:4]), np.arange(4))


def test_efficacy_by_hand():
    kernel = np.array([8, 7, 6, 5, 1, 2, 3, 4.0])[:, None]  # 15 + 7 kept of 36, at best 26
    half = np.array([0, 1, 4, 5, 2, 3, 6, 7])  # 15 + 11
    swap = np.array([0, 1, 2, 4, 3, 5, 6, 7])  # 15 + 9
    assert efficacy(kernel, half) == 100 and efficacy(kernel, swap) == 50 and efficacy(kernel, np.arange(8)) == 0
    assert efficacy(kernel[half], np.arange(8)) == 100  # nothing left to avoid


def test_an_mlp_stays_what_it_is_and_keeps_more(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 12)), jnp.float32)
    module = MLP(64)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
    params["mlp_in"]["bias"] = jnp.asarray(rng.standard_normal(64), jnp.float32)
    first, second = params["mlp_in"], params["mlp_out"]
    order = search(second["kernel"], rounds=100)
    kernel_in, bias_in, kernel_out = permute_hidden(first["kernel"], first["bias"], second["kernel"], order)
    new = {"mlp_in": {"kernel": kernel_in, "bias": bias_in}, "mlp_out": {**second, "kernel": kernel_out}}
    np.testing.assert_allclose(
        jax.jit(module.apply)({"params": new}, x), jax.jit(module.apply)({"params": params}, x), atol=1e-5
    )
    assert not np.array_equal(order, np.arange(64))
    assert kept(kernel_out) > 1.01 * kept(second["kernel"]) and kept(kernel_in) == pytest.approx(kept(first["kernel"]))
    lost = [float(jnp.sum(jnp.square(k - prune(k)))) for k in (second["kernel"], kernel_out)]
    assert lost[1] < 0.9 * lost[0]
    assert permute_hidden(first["kernel"], None, second["kernel"], order)[1] is None


def test_mistakes_are_sentences(rng):
    kernel = rng.standard_normal((8, 4))
    for call in (kept, search):
        with pytest.raises(UserError, match=r"shape \(6, 4\) has no groups of 4 along its input; give \[in, out\]"):
            call(kernel[:6])
    for wrong in (np.zeros(8, int), np.arange(7)):
        with pytest.raises(UserError, match="does not name each of the 8 hidden units once; give what search"):
            permute_hidden(kernel.T, None, kernel, wrong)
