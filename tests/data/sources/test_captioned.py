import dataclasses
import pickle

import pytest

from vit_jax.data.prompts import TEMPLATES
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import align
from vit_jax.data.sources.captioned import Captioned, WithTokenizer
from vit_jax.data.sources.fake import Fake
from vit_jax.data.text import TextConfig


def test_class_names_in_every_template(folder):
    plain = open_source(f"folder:{folder}", holdout=0)
    source = open_source(f"folder:{folder}", holdout=0, templates=("a {}.", "{}, a pet"))
    assert source.info.captions == 2 and source.info.class_names == plain.info.class_names == ("ant", "cat", "dog")
    for i in (0, 12, 37):
        name = plain.info.class_names[plain[i]["label"]]
        assert source[i] == {**plain[i], "captions": (f"a {name}.", f"{name}, a pet")}
    assert len(source) == len(plain) and pickle.loads(pickle.dumps(source))[5] == source[5]


def test_captions_follow_their_image_when_labels_are_renumbered():
    source = align(Captioned(Fake(6, 4, 3), ("no {}",)), ("2", "x", "0", "1"), "here")
    assert [(source[i]["label"], source[i]["captions"]) for i in range(3)] == [
        (2, ("no 0",)),
        (3, ("no 1",)),
        (0, ("no 2",)),
    ]


def test_sources_with_captions_keep_them():
    source = open_source("digits_pairs", "val", templates=TEMPLATES["photo"])
    assert source[3]["captions"] == open_source("digits_pairs", "val")[3]["captions"]
    assert source.info.captions == 3


def test_encoded():
    plain = Captioned(Fake(6, 4, 3), ("a {}", "the {}"))
    encoder = TextConfig(length=9).encoder()
    source = WithTokenizer(plain, encoder)
    assert source.info == dataclasses.replace(plain.info, encoder=encoder) and len(source) == 6
    assert source[4]["captions"] == ("a 1", "the 1")
    first = WithTokenizer(plain, encoder, first=True)
    assert first[4]["captions"] == ("a 1",) and first.info.captions == 1
    assert WithTokenizer(Fake(6, 4, 3), encoder, first=True)[0]["captions"] == ()
    with pytest.raises(IndexError):
        first[6]
