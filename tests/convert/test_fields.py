"""Guesses that are said, and what they are made from."""

import dataclasses
import math

import numpy as np
import pytest

from vit_jax.convert.fields import (
    check_images,
    depth,
    grid,
    heads_of,
    patches,
    rgb,
    shape,
    square,
    stride,
    token,
    unsupported,
)  # fmt: skip
from vit_jax.convert.preprocess import Preprocess
from vit_jax.io.tensors import Tensor
from vit_jax.types import UserError


def test_guesses():
    for size, heads, why in (((192, 12, 768), 3, "as in published"), ((256, 4, 1024), 4, "one per 64 channels")):
        found, note = heads_of(*size)
        assert found == heads and f"{heads} heads are assumed" in note and why in note
    assert heads_of(32, 2, 64)[0] == 1
    assert square(196, "x") == 14
    with pytest.raises(UserError, match="pos holds 195 positions"):
        square(195, "pos")


ROWS = [
    (197, (1, 0), [], (1, 14)),
    (196, (0,), [], (0, 14)),
    (196, (1, 0), [(14, 14)], (0, 14)),  # DeiT III, whose class token has no position
    (225, (1, 0), [(14, 16)], "14 x 16 patches; only square"),
    (225, (1, 0), [(15, 15)], (0, 15)),
    (225, (1, 0), [], "may be those of 1 tokens and of 14 x 16 patches, or those of 15 x 15; say so"),
    (225, (0, 1), [], (0, 15)),
    (49, (1, 0), [], "6 x 8 patches, or those of 7 x 7"),
    (144, (0,), [(9, 16)], "9 x 16 patches; only square"),
    (50, (0, 1), [], "may be those of 5 x 10 patches, or those of 1 tokens and of 7 x 7"),
    (577, (1, 0), [(14, 14)], (1, 24)),  # at another size than the description's
    (1374, (5, 0), [], (5, 37)),
    (1369, (5, 0), [(37, 37)], (0, 37)),
    (9, (5, 0), [], (5, 2)),
    (20, (1, 0), [], "19 positions, no square grid"),
    (1, (1, 0), [], (0, 1)),
    (0, (1, 0), [], "no square grid"),
]


@pytest.mark.parametrize(("rows", "prefixes", "told", "expected"), ROWS)
def test_rows_that_fit_two_layouts(rows, prefixes, told, expected):
    if isinstance(expected, tuple):
        assert grid(rows, prefixes, told, "pos", "say so") == expected
    else:
        with pytest.raises(UserError, match=expected):
            grid(rows, prefixes, told, "pos", "say so")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop": 1e-9}, "crops images to 1e-09 of their side"), ({"crop": 0.0}, "fraction"), ({"crop": 25.0}, "25"),
        ({"size": 10**6}, "1000000 px"), ({"size": 0}, "of 0 px"), ({"std": (0.0, 1.0, 1.0)}, "deviation"),
        ({"std": (0.5, -1.0, 1.0)}, "above 0"), ({"std": (0.5, math.inf, 1.0)}, "finite"),
        ({"mean": (math.nan, 0.5, 0.5)}, "finite"), ({"crop": math.nan}, "fraction"),
    ],
)  # fmt: skip
def test_images_that_nobody_can_prepare(wrong, words):
    good = Preprocess(224)
    check_images(good, "a.json")
    with pytest.raises(UserError, match=words):
        check_images(dataclasses.replace(good, **wrong), "a.json")


def test_shapes_are_there():
    theirs = {"a": Tensor.of(np.zeros((2, 3)))}
    assert shape(theirs, "a", 2) == (2, 3)
    with pytest.raises(UserError, match="the weights lack b, which tells the size of the model"):
        shape(theirs, "b", 2)
    with pytest.raises(UserError, match=r"a has the shape \(2, 3\), expected 4 axes"):
        shape(theirs, "a", 4)


def test_three_numbers():
    half = (0.5, 0.5, 0.5)
    assert rgb({"mean": [0, 1, 2]}, "mean", half, "x.json") == (0.0, 1.0, 2.0) and rgb({}, "mean", half, "x") == half
    assert rgb({"mean": [0.25]}, "mean", half, "x.json") == (0.25, 0.25, 0.25)  # of grey images
    for wrong in ([1, 2], "imagenet", [1, 2, "3"], 3):
        with pytest.raises(UserError, match=r"mean=.* in x\.json are not three numbers"):
            rgb({"mean": wrong}, "mean", half, "x.json")


def test_tokens_and_what_is_not_supported():
    assert [token(x) for x in ("<pad>", {"content": "<pad>", "lstrip": False}, None)] == ["<pad>", "<pad>", None]
    assert str(unsupported("a gate", "x is one", "timm", "ViTs")) == (
        "a gate cannot be expressed here (x is one); of timm's models ViTs can be converted."
    )


def test_patches_blocks_and_stems():
    theirs = {f"blocks.{i}.x": Tensor.of(np.zeros(1)) for i in (0, 2, 10)}
    assert depth(theirs, r"blocks\.") == 11 and depth(theirs, "locks") == depth({}, "blocks") == 0
    theirs = {"a": Tensor.of(np.zeros((8, 3, 4, 4))), "b": Tensor.of(np.zeros((8, 3, 4, 2)))}
    assert patches(theirs, "a") == (8, 4)
    for name, channels in (("a", 64), ("b", 3)):
        with pytest.raises(UserError, match=f"^{name} is .*; only square patches of {channels} channels"):
            patches(theirs, name, channels)
    assert [stride(stem) for stem in (None, (), (1,), (3, 4, 9), (3, 4, 6, 3))] == [1, 4, 4, 16, 32]
