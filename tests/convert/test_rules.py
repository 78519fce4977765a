"""The table engine: both directions, laziness, and what it says of files that do not fit."""

import ml_dtypes
import numpy as np
import pytest

from vit_jax import models
from vit_jax.convert import rules, transforms
from vit_jax.convert.rules import Block, Rule, back, into, renamed, rule, torch_blocks
from vit_jax.convert.transforms import SAME
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UserError


def tensors(**arrays):
    return {name: Tensor.of(np.asarray(x)) for name, x in arrays.items()}


RULES = [
    rule("w", "kernel", transforms.LINEAR),
    rule(("q", "k"), "qk", transforms.split_linear(1, 2)),
    rule("b", "bias"),
]
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
    ours, notes = rules.into(RULES, lazy, SHAPES, source="x")
    assert {path: t.shape for path, t in ours.items()} == SHAPES and not notes and not seen
    again = rules.back(RULES, ours, name="x")
    assert not seen and {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in source.items()}
    for name, t in source.items():
        np.testing.assert_array_equal(again[name].read(), t.read())
    assert seen == ["w", "q", "k", "b"]  # q and k are one row: its second result is kept until another row runs


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32_and_are_counted(rng, dtype):
    b = rng.normal(size=3).astype(dtype)
    ours, notes = rules.into(RULES, theirs(rng, b=b), SHAPES, source="x")
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
        rules.into(RULES, theirs(rng, **changes), SHAPES, source="some.file")
    assert all(word in str(e.value) for word in ["some.file", *words]), e.value


def test_nearest_names_and_what_may_be_left_out(rng):
    source = theirs(rng, b=None, b_extra=np.ones(3), mask=np.ones(2, np.int32))
    with pytest.raises(UserError, match=r"b is missing.*; b_extra, mask are left over"):
        rules.into(RULES, source, SHAPES, source="x")
    source = theirs(rng, mask=np.ones(2, np.int32))
    assert rules.into(RULES, source, SHAPES, source="x", unused={"mask": "a buffer", "other": "-"})[1] == [
        "mask is left out (a buffer)"
    ]
    with pytest.raises(UserError, match="norm/scale is left over"):
        rules.back(
            RULES,
            tensors(kernel=np.ones((2, 3)), qk=np.ones((2, 6)), bias=np.ones(3), **{"norm/scale": np.ones(1)}),
            name="x",
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_found_when_it_is_read(rng, bad):
    b = np.ones(3, ml_dtypes.bfloat16)
    b[1] = bad
    ours, _ = rules.into(RULES, theirs(rng, b=b), SHAPES, source="some.file")
    with pytest.raises(UserError, match=r"some.file: b holds NaN or infinity in 1 of 3 entries"):
        ours["bias"].read()
    assert np.isfinite(ours["kernel"].read()).all()


def test_blocks_by_the_names_of_a_project(rng):
    """One map or three, with and without biases and layer scale: every parameter of a block once, bit for bit."""
    three = tuple(f"{x}_{{}}" for x in "qkv")
    for qkv, bias, scale in (
        (("qkv.{}",), True, None),
        (three, True, 0.1),
        (three, False, None),
        (("a{}",), False, 1.0),
    ):
        tower = models.create("vit", width=8, depth=2, heads=2, mlp_dim=12, layer_scale=scale)
        names = Block(qkv, "out", ("m1", "m2"), ("n1", "n2"), ("s1", "s2"))
        rows = list(torch_blocks("b.", "encoder/block_", tower, names, bias))
        shapes = {k: v for k, v in describe.shapes(tower, 32).items() if k.startswith("encoder/block_")}
        ours = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
        if not bias:
            ours = {k: np.zeros_like(v) if k.endswith("qkv/bias") else v for k, v in ours.items()}
        theirs = back(rows, {k: Tensor.of(v) for k, v in ours.items()}, name="it")
        assert len(theirs) == 2 * (len(qkv) * (1 + bias) + 10 + 2 * (scale is not None))
        again, _ = into(rows, theirs, shapes, source="it")
        assert all(np.array_equal(again[k].read(), v) for k, v in ours.items())
    assert renamed(rows[:1], "x.", "y/") == [
        Rule(("x.b.0.n1.weight",), ("y/encoder/block_0/norm_attention/scale",), SAME)
    ]
