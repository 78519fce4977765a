"""Rows of tokens: the end is kept, the rest is padding; the configuration of it."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_jax.config import parse
from vit_jax.data.text import TextCodec, TextConfig
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.byte import Bytes
from vit_jax.types import UsageError, UserError


@dataclasses.dataclass(frozen=True)
class Words:
    """One id per letter; no start; padding is the end, as in SigLIP."""

    vocab_size: int = 10
    pad_id: int = 1
    end_id: int = 1
    start_id: None = None

    def ids(self, text):
        return [int(c) for c in text]

    def text(self, ids):
        return " ".join(map(str, ids))


@given(texts=st.lists(st.text(max_size=12), max_size=5), length=st.integers(3, 20))
def test_rows(texts, length):
    encoder = TextCodec(Bytes(), length)
    rows = encoder(texts)
    assert rows.shape == (len(texts), length) and rows.dtype == np.int32
    cut = 0
    for text, row in zip(texts, rows, strict=True):
        data = [b + 3 for b in text.encode()]
        kept = data[: length - 2]
        assert row.tolist() == [1, *kept, 2] + [0] * (length - 2 - len(kept))
        assert encoder.decode(row) == bytes(b - 3 for b in kept).decode(errors="replace")
        cut += len(data) > length - 2
        assert encoder.row(text) == ([1, *kept, 2], len(data) - len(kept))
    assert encoder.truncated(texts) == cut


def test_without_start_the_row_has_room_for_one_more():
    encoder = TextCodec(Words(), 4)
    np.testing.assert_array_equal(
        encoder(["", "2", "234", "2345"]), [[1] * 4, [2, 1, 1, 1], [2, 3, 4, 1], [2, 3, 4, 1]]
    )
    assert encoder.truncated(["", "234", "2345"]) == 1


@pytest.mark.parametrize("length", [3, 16, 77])
def test_equals_open_clip(open_clip, length):
    encoder = TextCodec(open_tokenizer("clip"), length)
    texts = ["", "a photo of a cat.", "the " * 90 + "end", "&lt;É&gt; it's 12!", "word " * 75, "word " * 14]
    np.testing.assert_array_equal(encoder(texts), open_clip.tokenize(texts, length).numpy())


def test_an_id_outside_the_vocabulary_is_a_sentence():
    class Damaged(Bytes):
        def ids(self, text):
            return [5, 259]

    with pytest.raises(UserError, match=r"259.*damaged"):
        TextCodec(Damaged(), 8)(["x"])

    class Negative(Bytes):
        def ids(self, text):
            return [-1, 5]

    with pytest.raises(UserError, match="damaged"):
        TextCodec(Negative(), 8)(["x"])


def test_encoders_are_values():
    a, b = TextConfig(length=9).encoder(), TextConfig(length=9).encoder()
    assert a == b and hash(a) == hash(b) and a != TextConfig(length=8).encoder()
    assert pickle.loads(pickle.dumps(a)) == a


def test_config():
    assert parse(TextConfig, {}) == TextConfig("bytes", 77, "random", None)
    assert parse(TextConfig, {"templates": "photo", "choose": "first"}).templates == "photo"
    encoder = parse(TextConfig, {"length": 5}).encoder()
    assert encoder == TextCodec(Bytes(), 5)


@pytest.mark.parametrize(
    "value, match",
    [
        ({"length": 2}, "length=2 is not allowed"),
        ({"choose": "last"}, "choose='last'"),
        ({"templates": "foto"}, "did you mean 'photo'"),
        ({"tokeniser": "clip"}, "did you mean 'tokenizer'"),
        ({"length": "x"}, "expected int"),
    ],
)
def test_config_mistakes(value, match):
    with pytest.raises(UserError, match=match):
        parse(TextConfig, value)


def test_the_tokenizer_is_opened_when_used():
    config = TextConfig("clip:/nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        config.encoder()
    with pytest.raises(UsageError, match="did you mean 'bytes'"):
        TextConfig("byte").encoder()
