import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax.data.sources.base import (
    Info,
    Relabelled,
    Strings,
    Subset,
    Unreadable,
    align,
    as_captions,
    digest,
    known_labels,
    split_mask,
    take_split,
    valid_captions,
)
from vit_jax.data.sources.fake import Fake
from vit_jax.types import UserError


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), count=st.integers(1, 200), seed=st.integers(0, 5))
def test_split_is_exact_and_stratified(sizes, count, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    room = sum(s - 1 for s in sizes)
    if count > room:
        with pytest.raises(UserError, match="leaves nothing to train on"):
            split_mask(labels, count, seed, "x")
        return
    held = split_mask(labels, count, seed, "x")
    assert held.sum() == count
    quota = np.bincount(labels[held], minlength=len(sizes))
    assert (quota < sizes).all()
    if all(count * s / len(labels) <= s - 1 for s in sizes):  # no class is full: off by less than one
        assert (np.abs(quota - count * np.array(sizes) / len(labels)) < 1).all()


def test_largest_remainders_come_first():
    labels = np.repeat([0, 1, 2], [7, 3, 10])
    assert np.bincount(labels[split_mask(labels, 1, 0, "x")], minlength=3).tolist() == [0, 0, 1]  # shares .35 .15 .5
    assert np.bincount(labels[split_mask(labels, 5, 0, "x")], minlength=3).tolist() == [2, 1, 2]  # 1.75 .75 2.5


def test_split_depends_on_the_seed_only():
    labels = np.repeat(np.arange(4), 50)
    a, b = split_mask(labels, 0.25, 0, "x"), split_mask(labels, 0.25, 1, "x")
    assert np.array_equal(a, split_mask(labels, 50, 0, "x")) and a.sum() == b.sum() == 50
    assert 20 < (a & ~b).sum() < 50


@pytest.mark.parametrize(
    ("holdout", "sentence"),
    [
        (0, "leaves nothing to validate on"),
        (0.01, "leaves nothing to validate on"),
        (0.99, "leaves nothing to train on in some of the 3 classes of pets .9 examples.; hold out at most 6"),
        (9, "leaves nothing to train on"),
        (-1, "holdout=-1 is not allowed"),
        (float("inf"), "holdout=inf is not allowed; give a number from 0 to"),
        (float("nan"), "holdout=nan is not allowed"),
        (2.5, "neither a fraction below 1 nor a whole number"),
    ],
)
def test_impossible_splits(holdout, sentence):
    with pytest.raises(UserError, match=sentence):
        split_mask(np.arange(9) % 3, holdout, 0, "pets")


def test_take_split_covers_everything_once():
    source = Fake(90, 4, 3)
    labels = np.arange(90) % 3
    parts = {split: take_split(source, labels, split, 0.2, 0, "x") for split in ("train", "val")}
    names = [p[i]["name"] for p in parts.values() for i in range(len(p))]
    assert len(parts["val"]) == parts["val"].info.num_examples == 18
    assert sorted(names) == sorted(source[i]["name"] for i in range(90))
    assert take_split(source, labels, "train", 0, 0, "x") is source


def test_align_renumbers_by_name():
    source = Fake(6, 4, 3)  # classes "0", "1", "2"
    aligned = align(source, ("2", "x", "0", "1"), "here")
    assert [aligned[i]["label"] for i in range(3)] == [2, 3, 0] and aligned.info.num_classes == 4
    assert len(aligned) == 6 and align(source, source.info.class_names, "here") is source
    with pytest.raises(UserError, match=r"here holds class '2', unknown in training"):
        align(source, ("0", "1"), "here")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=6)))
def test_strings_are_a_list_of_strings(items):
    items = [s.encode("utf-8", "ignore").decode() for s in items]
    packed = Strings.pack(items)
    assert list(packed) == items and len(packed) == len(items)
    assert list(Strings.concatenate([packed, packed])) == items * 2
    order = np.arange(len(items))[::-1]
    assert list(packed.take(order)) == items[::-1]
    with pytest.raises(IndexError):
        packed[len(items)]


def test_the_index_is_small():
    """A million file names take their characters and eight bytes each, not a hundred."""
    n = 20_000
    packed = Strings.pack([f"{i:09d}.jpg" for i in range(n)])
    assert packed.blob.nbytes + packed.ends.nbytes == n * (13 + 8)
    subset = Subset(Fake(n), np.arange(n))
    assert len(pickle.dumps(subset)) < 4 * n + 2000
    assert bytes(Strings.pack(["\udcff"])[0], "utf-8", "surrogateescape") == b"\xff"  # a name that is not UTF-8


def test_align_without_classes():
    source = align(Fake(6, 4, 3), (), "here")
    assert [source[i]["label"] for i in range(3)] == [0, 0, 0] and source.info.class_names == ()
    assert align(source, (), "here") is source
    assert isinstance(source, Relabelled)
    with pytest.raises(UserError, match="here has captions and no classes, but the training data has classes"):
        align(source, ("0", "1"), "here")


def test_labels_are_known_through_what_wraps_a_source():
    class Labelled(Fake):
        labels = np.array([2, 0, 1, 2])

    source = Relabelled(Subset(Labelled(4, 4, 3), np.array([3, 1])), np.array([5, 6, 7]), tuple("abcdefgh"))
    assert known_labels(source).tolist() == [7, 5]
    assert known_labels(Subset(Fake(4), np.array([1]))) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a cat", ("a cat",)),
        (" a\tcat\r\n", ("a\tcat",)),
        (b"k\xc3\xa4se", ("käse",)),
        (b"\xffa", ("\udcffa",)),
        (["a", b"b"], ("a", "b")),
        (("a", ""), ("a", "")),
        (np.array([b"a", "b "], object), ("a", "b")),
        (np.array(["a"]), ("a",)),
        ("", ("",)),
        ([], ()),
        (None, ()),
        (5, ()),
        (["a", None], ()),
        ({"a": 1}, ()),
        ([["a"]], ()),
    ],
)
def test_as_captions(value, expected):
    assert as_captions(value) == expected


def test_valid_captions():
    record = {"image": b"", "label": 0, "name": "x"}
    good = ("käse", "两只猫", "a\tb\u200b", "🐈")  # tabs and invisible characters are text
    assert valid_captions({**record, "captions": good}) == good
    for bad, sentence in (
        ((), "the example x has no caption"),
        (("a", ""), "a caption of x is empty"),
        ((" \n",), "a caption of x is empty"),
        (("ok", "a\ud800"), r"a caption of x is not valid UTF-8: 'a\\ud800'"),
    ):
        with pytest.raises(Unreadable, match=f"^{sentence}$"):
            valid_captions({**record, "captions": bad})
    with pytest.raises(Unreadable, match="the example x has no caption"):
        valid_captions(record)


def test_info_of_images_alone():
    assert (Info(("a", "b"), 3).captions, Info(("a", "b"), 3).encoder, Info((), 3).num_classes) == (0, None, 0)


def test_digests_see_every_part_and_their_order():
    a, b = np.arange(6), Strings.pack(["ab", "c"])
    digests = [
        digest(), digest(""), digest("a"), digest("b"), digest("a", "b"), digest("b", "a"), digest("ab"),
        digest(["a", "b"]),
        digest(["ab"], ["c"]), digest(b), digest(b, ""), digest(a), digest(a[::-1]), digest(a.astype(np.int32)),
        digest(a.reshape(2, 3)), digest(a, a), digest(a[:0]), digest(()), digest("\udce9"),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert all(len(x) == 16 for x in digests) and digest(b) == digest(["ab", "c"]) and digest(a) == digest(a.copy())


def test_a_wrapped_source_has_another_digest():
    source = Fake(12, 4, 3)
    source.info = dataclasses.replace(source.info, digest="known")
    subsets = [Subset(source, np.array(rows)) for rows in ([1, 2], [2, 1], [1, 3])]
    tables = [Relabelled(source, np.array(rows), ("a", "b", "c")) for rows in ([0, 1, 2], [2, 1, 0])]
    digests = {x.info.digest for x in (source, *subsets, *tables)}
    assert len(digests) == 6 and "" not in digests
