"""Cleaning: equal to open_clip's, and its short cut equal to the long way."""

import html

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tokenizer.texts import NASTY, anything
from vit_jax.data.tokenizer.clean import CLEAN, canonicalize, fix, lower


@given(text=st.text(st.characters(codec="ascii")) | anything)
def test_the_short_cut_changes_nothing(text):
    assert fix(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@pytest.mark.parametrize("name", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("text", NASTY)
def test_equals_open_clip(open_clip, name, text):
    assert CLEAN[name](text) == open_clip.tokenizer.get_clean_fn(name)(text)


def test_by_hand():
    assert fix("  A\t&amp;amp; b\n") == "A & b"
    assert fix("<b> &amp;lt;") == "<b> <"  # beside a tag ftfy leaves entities alone
    assert lower("SchÃ¶n  É") == "schön é"
    assert canonicalize("A Low_res photo, (of) X!") == "a low res photo of x"
    assert CLEAN["none"](" A\n&amp;") == " A\n&amp;"
