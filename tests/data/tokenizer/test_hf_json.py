"""Files of the `tokenizers` library: special tokens found or named, everything random or foreign switched off."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.hf_json import USUAL, Json
from vit_jax.types import UserError


def write(path, specials, model=None, **settings):
    """A file with byte-level pairs of one letter each, or another model, and these special tokens."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(model or models.BPE(alphabet, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(specials)
    for name, value in settings.items():
        setattr(library, name, value)
    path.write_text(library.to_str())
    return str(path)


@pytest.mark.parametrize("end", USUAL["end"])
@pytest.mark.parametrize("pad", USUAL["pad"])
def test_usual_names_are_found(tmp_path, end, pad):
    t = Json.open(write(tmp_path / "t.json", [pad, end]))
    assert (t.vocab_size, t.pad_id, t.end_id, t.start_id) == (258, 256, 257, None)


@pytest.mark.parametrize("start", USUAL["start"])
def test_a_usual_start_is_found(tmp_path, start):
    path = write(tmp_path / "t.json", ["<pad>", start, "</s>"])
    assert Json.open(path).start_id == 257
    assert Json.open(path + "?start=").start_id is None


def test_names_may_be_given(tmp_path):
    path = write(tmp_path / "t.json", ["<x=1>", "<y>"])
    t = open_tokenizer(f"json:{path}?pad=<x=1>&end=<y>&start=a")
    assert (t.pad_id, t.end_id, t.start_id) == (256, 257, ord("a") - 33)


@pytest.mark.parametrize(
    "specials, match",
    [
        ([], r"for 'end' \(.*\?end=TOKEN"),
        (["</s>"], r"for 'pad' \(.*\?pad=TOKEN"),
        (["</s>", "[SEP]", "<pad>"], r"several tokens for 'end': </s>, \[SEP\]"),
        (["<s>", "[CLS]", "</s>", "<pad>"], r"several tokens for 'start'"),
        ([AddedToken("</s>", special=False), "<pad>"], "for 'end'"),
    ],
)
def test_special_tokens_that_cannot_be_told(tmp_path, specials, match):
    path = tmp_path / "t.json"
    write(path, specials)
    if specials and isinstance(specials[0], AddedToken):
        value = json.loads(path.read_text())
        value["added_tokens"][0]["special"] = False
        path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=match):
        Json.open(str(path))


def test_a_text_cannot_spell_the_special_tokens(json_file):
    t = Json.open(str(json_file))
    text = "a </s> b <s> <pad>"
    assert {t.end_id, t.start_id, t.pad_id}.isdisjoint(t.ids(text)) and t.text(t.ids(text)) == text


def test_what_a_file_asks_for_beyond_ids_is_off(json_file, tmp_path):
    """Truncation, padding and dropout: ids are a function of the whole text."""
    library = tokenizers.Tokenizer.from_file(str(json_file))
    library.enable_truncation(2)
    library.enable_padding(length=40)
    library.model.dropout = 0.9
    library.save(str(tmp_path / "t.json"))
    plain, other = Json.open(str(json_file)), Json.open(str(tmp_path / "t.json"))
    for text in ("a photo of a cat", "two dogs on the grass") * 3:
        assert other.ids(text) == plain.ids(text)


def test_the_same_file_spelled_differently_is_the_same(json_file, tmp_path):
    value = json.loads(json_file.read_text())
    (tmp_path / "t.json").write_text(json.dumps(dict(reversed(value.items())), ensure_ascii=False, indent=7))
    assert Json.open(str(tmp_path / "t.json")) == Json.open(str(json_file))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"model": {"type": "BPE"}}', b"[" * 100_000])
def test_damaged_files_are_sentences(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UserError, match="no JSON of the tokenizers library"):
        Json.open(str(tmp_path / "t.json"))


def test_a_vocabulary_full_of_holes_is_refused(tmp_path):
    path = write(tmp_path / "t.json", ["</s>", "<pad>"], models.BPE({"a": 0, "b": 10**6}, []))
    with pytest.raises(UserError, match="largest id is 1,000,"):
        Json.open(path)


def test_a_model_without_unknown_token_is_refused(tmp_path):
    path = write(tmp_path / "t.json", ["</s>", "<pad>"], models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="unknown token"):
        Json.open(path)
