import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax.data.loader import DataConfig
from vit_jax.data.sources import open_source
from vit_jax.data.sources.fake import Fake
from vit_jax.data.sources.mixture import Mixture
from vit_jax.data.text import TextConfig
from vit_jax.types import UserError


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(2, 60), st.floats(0.05, 1)), min_size=1, max_size=4))
def test_proportions_and_coverage(parts):
    sources = [Fake(n, 2, 2) for n, _ in parts]
    mix = Mixture(sources, [w for _, w in parts], "mix")
    share = np.array([w for _, w in parts]) / sum(w for _, w in parts)
    counts = np.diff([0, *mix.ends])
    assert len(mix) == mix.info.num_examples == counts.sum()
    assert (np.abs(counts - len(mix) * share) <= 1 + len(parts) * share).all()
    assert (counts >= [n for n, _ in parts]).all()  # nothing is dropped
    start = 0
    for (n, _), end in zip(parts, mix.ends, strict=True):
        seen = collections.Counter(mix[i]["name"] for i in range(start, end))
        assert len(seen) == n and max(seen.values()) - min(seen.values()) <= 1
        start = end
    with pytest.raises(IndexError):
        mix[len(mix)]


def test_path_and_united_classes():
    train = open_source("mix:0.75*fake:30x4x3+0.25*digits")
    val = open_source("mix:0.75*fake:30x4x3+0.25*digits", "val")
    assert train.info.class_names == tuple("0123456789")
    assert len(train) == 4 * 1437 and len(val) == 3 + 360  # validation: everything once, whatever the weights
    assert {train[i]["label"] for i in range(27)} == {0, 1, 2} and train[3 * 1437]["name"].startswith("digits")


def test_plus_in_a_path(folder):
    folder.rename(folder.parent / "a+b")
    source = open_source(f"mix:1*folder:{folder.parent}/a+b+1e0*fake:50x4x2", holdout=0)
    assert source.info.class_names == ("ant", "cat", "dog", "0", "1") and len(source) == 100
    assert source[50]["label"] == 3


def test_a_part_in_quotes(folder):
    """What would start a part elsewhere does not there."""
    folder.rename(folder.parent / "a+2*b")
    for mark in "'\"":
        source = open_source(f"mix:1*{mark}folder:{folder.parent}/a+2*b{mark}+1*fake:50x4x2", holdout=0)
        assert source.info.class_names == ("ant", "cat", "dog", "0", "1")


def test_notes_tell_how_parts_differ(folder):
    notes = open_source("mix:0.5*fake:30x4x3+0.5*fake:10x4x2", holdout=0).info.notes
    assert notes == (
        "an epoch sees the 30 of fake:30x4x3 1 times, the 10 of fake:10x4x2 3 times",
        "1 of the 3 classes of fake:30x4x3 are in no other part (2)",
    )
    assert open_source("mix:1*fake:30x4x3+1*fake:30x4x3", holdout=0).info.notes == ()
    notes = " ".join(open_source("mix:0.5*digits_pairs+0.5*digits").info.notes)
    assert "digits_pairs has no classes, so the mixture has none" in notes
    assert "digits has no captions, so the mixture has none" in notes
    notes = " ".join(open_source("mix:0.5*digits_pairs+0.5*digits", templates=("a {}",)).info.notes)
    assert "no classes" in notes and "no captions" not in notes
    with pytest.raises(UserError, match=r"has images without captions \(in digits\); set data.text.templates"):
        DataConfig("mix:0.5*digits_pairs+0.5*digits", text=TextConfig()).open("train")


def test_captions_and_templates():
    path = "mix:0.5*digits_pairs+0.5*digits"
    source = open_source(path, templates=("a {}", "the {}"))
    assert source.info.captions == 6 and source.info.class_names == () and len(source) == 2 * 65_536
    assert len(source[8]["captions"]) == 6
    last = source[65_536]
    assert last["label"] == 0 and last["captions"] == ("a 0", "the 0") and last["name"].startswith("digits[")
    assert source[65_537]["captions"] == ("a 2", "the 2") and source[65_537]["label"] == 0  # not class "0": no classes
    assert open_source(path).info.captions == 0  # the digits have none
    both = open_source("mix:1*digits+1*fake:30x4x3", templates=("a {}",))
    assert both.info.captions == 1 and both.info.class_names == tuple("0123456789")
    assert both[1]["label"] == 2 and both[1]["captions"] == ("a 2",)
    val = open_source(path, "val", templates=("a {}", "the {}"))
    assert len(val) == 512 + 360 and val.info.captions == 3


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ("", "cannot be read at ''"),
        ("digits", "cannot be read at 'digits'"),
        ("a*digits", r"cannot be read at 'a\*digits'"),
        ("1*digits+", r"unknown source 'digits\+'; did you mean 'digits'"),
        ("1*mix:1*digits", "cannot be read at"),
        ("0*digits+1*fake:9x2x2", "the weight 0 in .* is not positive"),
        ("1e-12*digits+1*fake:90x2x2", "too uneven"),
        ("1*digit", "unknown source 'digit'; did you mean 'digits'"),
    ],
)
def test_mistakes(rest, sentence):
    with pytest.raises(UserError, match=sentence):
        open_source(f"mix:{rest}", holdout=0)
