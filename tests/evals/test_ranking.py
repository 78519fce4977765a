"""Ranks against sorting, ties against every order that they could have."""

import itertools

import numpy as np
import pytest

from vit_jax.evals import ranking
from vit_jax.evals.ranking import Ranking, rank, similarities


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_unit_length_but_of_what_has_next_to_none():
    x = np.asarray([[3, 4], [0, 0], [3e-9, 4e-9]], np.float32)
    np.testing.assert_allclose(ranking.unit(x), [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(ranking.unit(x, 1e-8)[2], [0.3, 0.4], rtol=1e-6)


def by_sorting(sims: np.ndarray, right: np.ndarray) -> int:
    """Place of the first right item in one list without ties."""
    return int(np.flatnonzero(right[np.argsort(-sims)])[0]) + 1


@pytest.mark.parametrize(("q", "n", "owners"), [(13, 29, 7), (1, 1, 1), (40, 40, 40), (5, 31, 3)])
@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_against_sorting(q: int, n: int, owners: int, chunk: int, rng: np.random.Generator) -> None:
    queries, gallery = unit(rng.normal(size=(q, 6))), unit(rng.normal(size=(n, 6)))
    mine, theirs = rng.integers(0, owners, q), np.resize(np.arange(owners), n)
    got = rank(queries, gallery, mine, theirs, chunk=chunk)
    sims = queries.astype(np.float64) @ gallery.astype(np.float64).T
    want = [by_sorting(s, theirs == m) for s, m in zip(sims, mine, strict=True)]
    np.testing.assert_array_equal(got.rank(), want)
    for k in (1, 5, 10):
        np.testing.assert_array_equal(got.recall(k), np.array(want) <= k)


@pytest.mark.parametrize(("above", "tied", "own"), [(0, 3, 1), (1, 3, 2), (2, 0, 2), (0, 2, 3), (4, 1, 1), (0, 0, 1)])
def test_ties_are_the_mean_over_all_orders(above: int, tied: int, own: int) -> None:
    places = []
    for order in itertools.permutations([True] * own + [False] * tied):
        places.append(above + order.index(True) + 1)
    ranking = Ranking(*(np.array([x]) for x in (above, tied, own)))
    assert ranking.rank()[0] == pytest.approx(np.mean(places))
    for k in range(1, 9):
        assert ranking.recall(k)[0] == pytest.approx(np.mean(np.array(places) <= k), abs=1e-12)


@pytest.mark.parametrize("value", [1.0, 0.0, np.nan])
def test_collapsed_embeddings_score_what_guessing_does(value: float, rng: np.random.Generator) -> None:
    """All embeddings the same, in an odd number that no matrix kernel divides: no place is better than another."""
    one = unit(rng.normal(size=(1, 67))) * np.float32(value)
    queries, gallery = np.repeat(one, 37, 0), np.repeat(one, 101, 0)
    got = rank(queries, gallery, np.arange(37), np.arange(101), chunk=1000)
    np.testing.assert_allclose(got.rank(), 51)
    for k in (1, 5, 10):
        np.testing.assert_allclose(got.recall(k), k / 101)


@pytest.mark.parametrize(("q", "n"), [(1, 1003), (17, 101), (33, 101), (3, 517)])
def test_equal_embeddings_tie_wherever_they_stand(q: int, n: int, rng: np.random.Generator) -> None:
    """In float32 they do not: the kernel for the last columns adds up in another order."""
    gallery = unit(rng.normal(size=(3, 67)))
    copies = gallery[np.resize(np.arange(3), n)]
    for _, values in similarities(unit(rng.normal(size=(q, 67))), copies):
        assert all(len(np.unique(row)) == 3 for row in values)


def test_nan_is_last_and_never_a_hit() -> None:
    gallery = np.array([[1, 0], [np.nan, 0], [0, 1], [-1, 0]], np.float32)
    queries = np.array([[1, 0], [1, 0], [np.nan, 1]], np.float32)
    got = rank(queries, gallery, np.array([3, 1, 2]), np.arange(4))
    np.testing.assert_array_equal(got.rank(), [3, 4, 2.5])  # before NaN; behind all; knows nothing
    np.testing.assert_allclose(got.recall(1), [0, 0, 1 / 4])


def test_every_query_has_an_answer() -> None:
    with pytest.raises(AssertionError):
        rank(np.ones((2, 1)), np.ones((2, 1)), np.array([0, 5]), np.array([0, 1]))
