"""The table engine: both directions, laziness, and what it says of files that do not fit."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax.convert import table
from vit_jax.convert.table import rule
from vit_jax.io.tensors import Tensor
from vit_jax.types import UserError

K, E, D = 3, 4, 10


def tensors(**arrays):
    return {name: Tensor.of(np.asarray(x)) for name, x in arrays.items()}


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
    split = table.split_linear(K, parts)
    np.testing.assert_allclose(heads(x, *both_ways(split, *ws), *both_ways(split, *bs)), want)
    fused = table.fused_linear(K, parts)
    w, b = both_ways(fused, np.concatenate(ws)), both_ways(fused, np.concatenate(bs))
    np.testing.assert_allclose(heads(x, *w, *b), want)
    flax = table.split_heads(K, parts)
    w = both_ways(flax, *(w.T.reshape(D, K, E) for w in ws))
    np.testing.assert_allclose(heads(x, *w, *both_ways(flax, *(b.reshape(K, E) for b in bs))), want)


def test_the_other_layouts(rng):
    x, kernel = rng.normal(size=(5, K, E)), rng.normal(size=(K, E, D))
    (out,) = both_ways(table.merge_heads(K), kernel)
    np.testing.assert_allclose(x.reshape(5, -1) @ out, np.einsum("nke,ked->nd", x, kernel))
    conv = rng.normal(size=(7, 3, 2, 4))
    assert both_ways(table.CONV, conv)[0][1, 3, 2, 6] == conv[6, 2, 1, 3]
    assert both_ways(table.LINEAR, rng.normal(size=(2, 5)))[0].shape == (5, 2)
    assert both_ways(table.reshape((1, 1, -1), (-1,)), rng.normal(size=(1, 1, 6)))[0].shape == (6,)
    weights = rng.normal(size=(2, K * E, D)), rng.normal(size=(2, K * E, D))
    ours = both_ways(table.stacked(table.split_linear(K, 2), 2), *weights)
    for i in range(2):
        np.testing.assert_array_equal(ours[i], table.split_linear(K, 2).into(weights[0][i], weights[1][i])[0])


RULES = [rule("w", "kernel", table.LINEAR), rule(("q", "k"), "qk", table.split_linear(1, 2)), rule("b", "bias")]
SHAPES = {"kernel": (2, 3), "qk": (2, 6), "bias": (3,)}


def theirs(rng, **changes):
    arrays = dict(w=(3, 2), q=(3, 2), k=(3, 2), b=(3,))
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in arrays.items()} | changes
    return tensors(**{k: v for k, v in arrays.items() if v is not None})


def test_round_trips_are_exact_and_read_late(rng):
    source = theirs(rng)
    seen = []

    def spy(name):
        def read():
            seen.append(name)
            return source[name].read()

        return read

    lazy = {n: Tensor(t.shape, t.dtype, spy(n)) for n, t in source.items()}
    ours, notes = table.into(RULES, lazy, SHAPES, source="x")
    assert {path: t.shape for path, t in ours.items()} == SHAPES and not notes and not seen
    again = table.back(RULES, ours, name="x")
    assert not seen and {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in source.items()}
    for name, t in source.items():
        np.testing.assert_array_equal(again[name].read(), t.read())
    assert seen == ["w", "q", "k", "b"]  # q and k are one row: its second result is kept until another row runs


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32_and_are_counted(rng, dtype):
    b = rng.normal(size=3).astype(dtype)
    ours, notes = table.into(RULES, theirs(rng, b=b), SHAPES, source="x")
    assert notes == [f"1 of 4 tensors are {np.dtype(dtype)} there, float32 here"]
    np.testing.assert_array_equal(ours["bias"].read(), b.astype(np.float32))
    assert ours["bias"].read().dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"w": None}, ["w is missing"]),
        ({"w": None, "wx": np.ones((3, 2))}, ["w is missing", "wx is left over", "--model"]),
        ({"e": np.ones(1), "f": np.ones(1)}, ["e, f are left over"]),
        ({"b": np.ones(4)}, ["b (4,) does not fit bias (3,)", "--model"]),
        ({"q": np.ones((3, 5))}, ["q (3, 5)", "does not fit qk (2, 6)"]),
        ({"w": np.ones(6)}, ["w (6,) does not fit kernel (2, 3)"]),
        ({"b": np.ones(3, np.int64)}, ["b is of type int64"]),
    ],
)
def test_files_that_do_not_fit(rng, changes, words):
    with pytest.raises(UserError) as e:
        table.into(RULES, theirs(rng, **changes), SHAPES, source="some.file")
    assert all(word in str(e.value) for word in ["some.file", *words]), e.value


def test_nearest_names_and_what_may_be_left_out(rng):
    source = theirs(rng, b=None, b_extra=np.ones(3), mask=np.ones(2, np.int32))
    with pytest.raises(UserError, match=r"b is missing.*; b_extra, mask are left over"):
        table.into(RULES, source, SHAPES, source="x")
    source = theirs(rng, mask=np.ones(2, np.int32))
    assert table.into(RULES, source, SHAPES, source="x", unused={"mask": "a buffer", "other": "-"})[1] == [
        "mask is left out (a buffer)"
    ]
    with pytest.raises(UserError, match="norm/scale is left over"):
        table.back(
            RULES,
            tensors(kernel=np.ones((2, 3)), qk=np.ones((2, 6)), bias=np.ones(3), **{"norm/scale": np.ones(1)}),
            name="x",
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_found_when_it_is_read(rng, bad):
    b = np.ones(3, ml_dtypes.bfloat16)
    b[1] = bad
    ours, _ = table.into(RULES, theirs(rng, b=b), SHAPES, source="some.file")
    with pytest.raises(UserError, match=r"some.file: b holds NaN or infinity in 1 of 3 entries"):
        ours["bias"].read()
    assert np.isfinite(ours["kernel"].read()).all()
