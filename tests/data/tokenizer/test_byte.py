"""Bytes: invertible for every string."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data.tokenizer.texts import NASTY, anything
from vit_jax.data.tokenizer.byte import Bytes


@given(text=anything)
@example("\ud83d\ude00 \udc80")
@example("\x00\x01\x02")
def test_every_string_round_trips(text):
    t = Bytes()
    assert t.text(t.ids(text)) == text
    assert t.text([t.start_id, *t.ids(text), t.end_id, t.pad_id]) == text


@pytest.mark.parametrize("text", NASTY)
def test_ids_are_utf8(text):
    assert bytes(i - 3 for i in Bytes().ids(text)) == text.encode()


def test_layout():
    t = Bytes()
    assert (t.vocab_size, t.pad_id, t.start_id, t.end_id) == (259, 0, 1, 2)
    assert t.ids("\x00") == [3] and t.ids("a") == [ord("a") + 3]


@given(ids=st.lists(st.integers(0, 258)))
def test_what_is_no_utf8_is_replaced(ids):
    assert isinstance(Bytes().text(ids), str)


def test_a_cut_character_is_replaced():
    t = Bytes()
    assert t.text(t.ids("aé")[:-1]) == "a\ufffd"
