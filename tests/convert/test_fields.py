"""Guesses that are said, and what they are made from."""

import pytest

from vit_jax.convert.fields import heads_of, square
from vit_jax.types import UserError


def test_guesses():
    assert heads_of(192, 12, 768) == (3, None) and heads_of(1280, 32, 5120) == (16, None)
    heads, note = heads_of(256, 4, 1024)
    assert heads == 4 and "assumed" in note
    assert heads_of(32, 2, 64)[0] == 1
    assert square(196, "x") == 14
    with pytest.raises(UserError, match="pos holds 195 positions"):
        square(195, "pos")
