"""A tokenizer that travels with weights: kept in metadata, found by name, refused where it is another's."""

import dataclasses
import json

import pytest

from vit_jax import config, models
from vit_jax.data import text
from vit_jax.data.text import TextCodec, TextConfig
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.types import UserError

BYTES = TextCodec(open_tokenizer("bytes"), 9)
MERGED = TextCodec(Clip("t h\nth e</w>"), 9)
TOWER = models.TextTransformer(vocab_size=259, length=9, end_id=2, width=8, heads=1)


@pytest.mark.parametrize("encoder", [BYTES, MERGED], ids=["bytes", "clip"])
def test_metadata(encoder):
    kept = json.loads(json.dumps(text.to_meta(encoder)))
    again = text.from_meta(kept)
    assert again == encoder and again.length == 9 and (again(["the a"]) == encoder(["the a"])).all()
    assert text.from_meta(None) is None
    for broken in ({}, {"state": kept["state"]}, {"state": {"kind": "bytes"}, "length": "x"}, []):
        with pytest.raises(UserError, match="the checkpoint's tokenizer is damaged"):
            text.from_meta(broken)
    with pytest.raises(UserError, match="lacks 'kind'"):
        text.from_meta({"state": {}, "length": 3})


def test_the_section_of_a_configuration():
    found = text.section(BYTES)
    assert config.parse(TextConfig, found).encoder() == BYTES
    assert text.section(MERGED) == {"tokenizer": "clip", "length": 9}


def test_what_is_not_there_is_said():
    assert text.find("bytes", 9) == (BYTES, [])
    found, (note,) = text.find("json:/gone/tokenizer.json", 9)
    assert found is None and "its texts cannot be encoded" in note and "/gone/tokenizer.json" in note


def test_tokenizers_of_other_models():
    text.check_fits(BYTES, TOWER, "x")
    with pytest.raises(UserError, match="the tokenizer of x has 259 tokens, its text tower knows 258"):
        text.check_fits(BYTES, TOWER.clone(vocab_size=258), "x")
    with pytest.raises(UserError, match="the tokenizer of x makes texts of 9 tokens, its text tower knows 8 positions"):
        text.check_fits(BYTES, TOWER.clone(length=8), "x")
    with pytest.raises(UserError, match="the tokenizer of x ends texts with 2, its text tower with 258"):
        text.check_fits(BYTES, TOWER.clone(end_id=258), "x")
    text.check_fits(BYTES, TOWER.clone(end_id=258, pool="last"), "x")


def test_another_tokenizer_than_the_weights():
    for there, here in ((BYTES, dataclasses.replace(BYTES, length=4)), (None, BYTES), (MERGED, None)):
        text.check_same(there, here, "x")
    words = (
        r"x was trained with the tokenizer 'clip' \(516 tokens\), .* with 'bytes' \(259 tokens\); .*tokenizer=clip\."
    )
    with pytest.raises(UserError, match=words):
        text.check_same(MERGED, BYTES, "x")
    with pytest.raises(UserError, match="tokenizer=bytes"):
        text.check_same(BYTES, MERGED, "x")
