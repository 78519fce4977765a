"""How the classes of a model and of data differ."""

import pytest

from vit_jax.data.classes import mismatch


@pytest.mark.parametrize("model", [("a", "b", "c"), ("0", "1", "2"), ["a", "b", "c"]])
def test_they_agree(model):
    assert mismatch(model, ("a", "b", "c")) is None


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        (("a", "b"), ("a", "c"), "has the classes a, b, the data a, c (first difference: b)"),
        (("a", "b"), ("a", "b", "c"), "has the classes a, b, the data a, b, c"),
        (("0", "1"), ("a", "b", "c"), "has the classes 0, 1, the data a, b, c (first difference: 0)"),
        (tuple("abcdefg"), ("a",), "has the classes a, b, c, ... (7), the data a"),
    ],
)
def test_they_differ(model, data, sentence):
    assert mismatch(model, data) == sentence
