"""Training: a function of the captions alone, able to encode everything."""

import random

import pytest
from hypothesis import given

from tests.data.tokenizer.conftest import CAPTIONS
from tests.data.tokenizer.texts import anything
from vit_jax.data.sources.base import Unreadable
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.base import well_formed
from vit_jax.data.tokenizer.train import LEAST, captions, save, train
from vit_jax.types import UserError


def test_the_order_of_captions_does_not_matter():
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert train(CAPTIONS, 320) == train(iter(shuffled), 320) == train(CAPTIONS, 320)
    assert train(CAPTIONS, 300) != train(CAPTIONS, 301)


@given(text=anything)
def test_every_text_round_trips(json_file, text):
    t = open_tokenizer(f"json:{json_file}")
    assert t.text(t.ids(text)) == well_formed(text)


def test_frequent_words_become_tokens(json_file):
    t = open_tokenizer(f"json:{json_file}")
    assert (t.vocab_size, t.pad_id, t.start_id, t.end_id) == (300, 0, 1, 2)
    text = "a photo of a cat"
    assert len(t.ids(text)) < len(text) / 2


def test_what_occurs_once_is_not_learned():
    assert '"qz"' not in train([*CAPTIONS, "qz"], 2000)
    assert '"qz"' in train([*CAPTIONS, "qz", "qz"], 2000)


def test_lower(tmp_path):
    (tmp_path / "t.json").write_text(train(CAPTIONS, 300, lower=True))
    t = open_tokenizer(f"json:{tmp_path}/t.json")
    assert t.ids("A Photo") == t.ids("a photo") and t.text(t.ids("A Photo")) == "a photo"


@pytest.mark.parametrize("size", [LEAST - 1, 0, -5, 2**40])
def test_vocabulary_size_out_of_range(size):
    with pytest.raises(UserError, match=f"vocab_size={size}"):
        train(CAPTIONS, size)


def test_the_smallest_vocabulary_is_bytes(tmp_path):
    (tmp_path / "t.json").write_text(train(CAPTIONS, LEAST))
    t = open_tokenizer(f"json:{tmp_path}/t.json")
    assert t.vocab_size == 259 and len(t.ids("a photo é")) == 10


class Records(list):
    def __getitem__(self, i):
        value = super().__getitem__(i)
        if value is None:
            raise Unreadable("the image x is missing")
        return {"name": f"row {i}", "captions": value}


def test_captions_counts_what_it_leaves_out():
    skipped = []
    assert list(captions(Records([("a", "b"), None, (), ("c",)]), skipped)) == ["a", "b", "c"]
    assert skipped == ["the image x is missing", "the example row 2 has no caption"]
    with pytest.raises(UserError, match="no example has a readable caption: the image x is missing"):
        list(captions(Records([None, ()]), []))


def test_save_is_all_or_nothing(tmp_path):
    path = tmp_path / "t.json"

    def fail() -> str:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        save(str(path), fail)
    assert list(tmp_path.iterdir()) == []
    save(str(path), lambda: "é")
    assert path.read_text(encoding="utf-8") == "é" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="exists"):
        save(str(path), fail)
    with pytest.raises(UserError, match="no folder"):
        save(str(tmp_path / "no" / "t.json"), fail)
