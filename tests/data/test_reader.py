import threading
import time

import numpy as np
import pytest

from vit_jax.data.framing import TRAINING
from vit_jax.data.reader import Filled, Reader
from vit_jax.data.sources.captioned import WithTokenizer
from vit_jax.data.sources.fake import Fake
from vit_jax.data.text import TextConfig
from vit_jax.io import reads
from vit_jax.types import UserError


class Titled(Fake):
    """Example i has i % 4 + 1 captions; ``bad`` replaces those of some examples."""

    def __init__(self, n, bad=None):
        super().__init__(n, 4, 1)
        self.bad = bad or {}
        self.info = type(self.info)((), n, captions=4)

    def __getitem__(self, i):
        captions = tuple(f"{i} no {k}" for k in range(i % 4 + 1))
        return {**super().__getitem__(i), "captions": self.bad.get(i, captions)}


def encoded(source, length=12, **options):
    return WithTokenizer(source, TextConfig(length=length).encoder(), **options)


def read(source, rows, *, train=False, on_error="raise", draws=None):
    reader = Reader(source, 4, TRAINING, "train" if train else "eval", on_error)
    batch = reader.empty(np.array(rows))
    return batch, reader.fill(batch, slice(None), None if draws is None else np.array(draws, np.uint64))


def test_a_training_row_has_the_caption_that_was_drawn():
    source = encoded(Titled(8))
    encoder = source.info.encoder
    batch, filled = read(source, [3, 0, 6, 3], train=True, draws=[2, 2**64 - 1, 5, 4])
    assert set(batch) == {"image", "size", "label", "mask", "index", "text"} and filled == Filled({}, 0)
    assert batch["text"].shape == (4, 12) and batch["text"].dtype == np.int32
    assert [encoder.decode(row) for row in batch["text"]] == ["3 no 2", "0 no 0", "6 no 2", "3 no 0"]
    assert np.array_equal(batch["text"], encoder(["3 no 2", "0 no 0", "6 no 2", "3 no 0"]))


def test_an_evaluation_row_has_all_captions():
    source = encoded(Titled(8))
    encoder = source.info.encoder
    batch, filled = read(source, [3, 4, 5, -1])
    assert batch["text"].shape == (4, 4, 12) and batch["captions"].tolist() == [4, 1, 2, 0]
    assert batch["captions"].dtype == np.int32 and filled.truncated == 0
    for row, count in enumerate(batch["captions"]):
        index = int(batch["index"][row])
        assert np.array_equal(batch["text"][row, :count], encoder([f"{index} no {k}" for k in range(count)]))
        assert (batch["text"][row, count:] == encoder.tokenizer.pad_id).all()


def test_without_an_encoder_there_is_no_text():
    for train in (True, False):
        batch, filled = read(Titled(8, {2: ()}), [1, 2], train=train)
        assert "text" not in batch and "captions" not in batch and filled == Filled({}, 0)


def test_captions_that_do_not_fit_are_counted_and_keep_their_end():
    source = encoded(Titled(8, {1: ("abc", "abcdefghijk", "ä" * 9), 2: ("x" * 99,)}), length=6)
    tokenizer = source.info.encoder.tokenizer
    batch, filled = read(source, [1, 2, 3])
    assert filled.truncated == 3 + 4 and batch["text"].shape == (3, 4, 6)  # "3 no k" has two bytes too many
    ends = (batch["text"] == tokenizer.end_id).sum(-1)
    assert np.array_equal(ends, np.arange(4) < batch["captions"][:, None])
    assert read(source, [1, 1], train=True, draws=[0, 1])[1].truncated == 1


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ((), r"the example fake\[2\] has no caption"),
        (("fine", " \n"), r"a caption of fake\[2\] is empty"),
        (("",), r"a caption of fake\[2\] is empty"),
        (("a\udcff",), r"a caption of fake\[2\] is not valid UTF-8: 'a\\udcff'"),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_a_bad_caption_makes_its_example_unreadable(captions, sentence, train):
    source = encoded(Titled(150, {2: captions}))
    with pytest.raises(UserError, match=sentence + "; repair or remove it, or set data.on_error='skip'"):
        read(source, [1, 2, 3], train=train)
    batch, filled = read(source, [1, 2, 3], train=train, on_error="skip", draws=[0, 0, 0])
    assert list(filled.unreadable) == [2]
    if train:
        assert batch["index"].tolist() == [1, 3, 3] and np.array_equal(batch["text"][1], batch["text"][2])
    else:
        assert batch["mask"].tolist() == [True, False, True] and batch["captions"].tolist() == [2, 0, 4]
        assert (batch["text"][1] == source.info.encoder.tokenizer.pad_id).all() and not batch["image"][1].any()


def test_labels_of_images_without_classes_are_zero():
    class Labelled(Titled):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "label": 1}

    with pytest.raises(UserError, match=r"the label 1 of fake\[0\] is outside 0\.\.0"):
        read(Labelled(2), [0])


def test_what_takes_too_long_is_named():
    """By its number, and by its file where that is known."""
    begun, end = threading.Event(), threading.Event()

    class Hung(Titled):
        def __getitem__(self, i):
            with reads.reading("/disk/a.jpg"):
                begun.set()
                end.wait()
            return super().__getitem__(i)

    reader = Reader(Hung(8), 4, TRAINING, "eval", "raise", timeout=0.05)
    batch = reader.empty(np.array([5]))
    thread = threading.Thread(target=reader.fill, args=(batch, slice(None)))
    thread.start()
    begun.wait()
    time.sleep(0.06)
    assert reader.overdue() == "example 5 (/disk/a.jpg)"
    end.set()
    thread.join()
    assert reader.overdue() == "" and batch["mask"].all()
