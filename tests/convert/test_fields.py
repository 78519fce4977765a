"""Guesses that are said, and what they are made from."""

import numpy as np
import pytest

from vit_jax.convert.fields import depth, heads_of, patches, rgb, shape, square, stride, token, unsupported
from vit_jax.io.tensors import Tensor
from vit_jax.types import UserError


def test_guesses():
    assert heads_of(192, 12, 768) == (3, None) and heads_of(1280, 32, 5120) == (16, None)
    heads, note = heads_of(256, 4, 1024)
    assert heads == 4 and "assumed" in note
    assert heads_of(32, 2, 64)[0] == 1
    assert square(196, "x") == 14
    with pytest.raises(UserError, match="pos holds 195 positions"):
        square(195, "pos")


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
