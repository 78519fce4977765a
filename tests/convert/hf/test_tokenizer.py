"""Tokenizers out, in equal, in as transformers stores them; and what transformers itself makes of what is written."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from vit_jax.convert.hf import tokenizer
from vit_jax.convert.hf.tokenizer import FILE, OWN
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import Bytes, Clip, open_tokenizer
from vit_jax.data.tokenizer.clip import build_vocabulary

MERGES = "c a\nca t</w>\nd o\ndo g</w>"
TEXTS = ["a cat", "Cats,  dogs!", "dog dog dog dog dog dog dog dog", ""]


def library(ends=("<bos>", "<eos>", "<pad>"), post=True):
    """A small tokenizer of the `tokenizers` library as JSON."""
    words = {w: i for i, w in enumerate([*ends, "<unk>", "a", "cat", "dog", "cats", "dogs"])}
    tok = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tok.normalizer = normalizers.Lowercase()
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.add_special_tokens([*ends, "<unk>"])
    if post:
        pairs = [(ends[0], 0), (ends[1], 1)]
        tok.post_processor = processors.TemplateProcessing(single=f"{ends[0]} $A {ends[1]}", special_tokens=pairs)
    return tok.to_str()


def pieces(folder, **options):
    """A SentencePiece model trained on a few words."""
    texts = ["a cat and a dog", "two cats", "three dogs and a cat"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "s"), vocab_size=40, hard_vocab_limit=False,
        minloglevel=2, **options
    )  # fmt: skip
    return (folder / "s.model").read_bytes()


def stored(folder, files):
    """As ``store`` writes and ``sidecar`` reads them."""
    about = {}
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        about[name] = json.loads(path.read_text()) if name == FILE else path
    return about


def encoders(folder):
    path = folder / "given.json"
    path.write_text(library())
    (folder / "given.model").write_bytes(pieces(folder))
    return {
        "bytes": open_tokenizer("bytes"),
        "clip": Clip(MERGES),
        "clip, canonicalize": Clip(MERGES, "canonicalize"),
        "json": open_tokenizer(f"json:{path}?clean=lower"),
        "json without start": open_tokenizer(f"json:{path}?start=&pad=<eos>"),
        "sentencepiece": open_tokenizer(f"sentencepiece:{folder}/given.model"),
        "sentencepiece with start": open_tokenizer(f"sentencepiece:{folder}/given.model?start=<s>&clean=none"),
    }


def test_what_is_written_comes_back_equal(tmp_path):
    for name, own in encoders(tmp_path).items():
        folder = tmp_path / name
        folder.mkdir()
        files, _ = tokenizer.write(TextCodec(own, 11), "clip")
        for family in ("clip", "siglip"):
            again, notes = tokenizer.read(stored(folder, files), family, 7, False)
            assert again == TextCodec(own, 11) and notes == [], name
            np.testing.assert_array_equal(again(TEXTS), TextCodec(own, 11)(TEXTS))


def test_nothing_is_written_of_nothing():
    assert tokenizer.write(None, "clip") == ({}, ["no tokenizer is known, none is written"])
    assert tokenizer.read({}, "clip", 7, False) == (
        None, ["no tokenizer lies beside the weights: texts have to come as tokens"]
    )  # fmt: skip


def test_what_transformers_does_otherwise_is_said(tmp_path):
    notes = {name: tokenizer.write(TextCodec(t, 9), "clip")[1] for name, t in encoders(tmp_path).items()}
    assert notes["clip"] == notes["json without start"] == notes["sentencepiece"] == []
    assert notes["bytes"] == ["transformers has no tokenizer like 'bytes': only vit_jax encodes texts for this model"]
    for name, how in (("clip, canonicalize", "canonicalize"), ("json", "lower")):
        assert f"texts are cleaned here ({how!r})" in notes[name][0] and len(notes[name]) == 1
    assert "cleaned here ('none')" in notes["sentencepiece with start"][0]
    assert notes["sentencepiece with start"][1:] == ["texts begin with token 1 here, which transformers does not add"]
    (tmp_path / "bare.json").write_text(library(post=False))
    bare = open_tokenizer(f"json:{tmp_path}/bare.json")
    assert tokenizer.write(TextCodec(bare, 9), "siglip")[1] == [
        "transformers adds no end token to texts with this tokenizer.json; append it there"
    ]


def test_what_fills_up_matters_to_siglip(tmp_path):
    """Its features are the last token's."""
    notes = {name: tokenizer.write(TextCodec(t, 9), "siglip")[1] for name, t in encoders(tmp_path).items()}
    assert notes["clip"] == [
        "texts are filled up with token 0 here, which transformers' tokenizer does not do: pad there"
    ]
    assert not any("filled up" in note for name in notes if "clip" not in name for note in notes[name])
    (tmp_path / "given.json").write_text(library(("<bos>", "<eos>", "<pad>")).replace("<pad>", "plain"))
    plain = open_tokenizer(f"json:{tmp_path}/given.json?pad=a")
    assert "filled up with token 4 here" in tokenizer.write(TextCodec(plain, 9), "siglip")[1][0]


@pytest.mark.parametrize(
    ("name", "family"),
    [("clip", "clip"), ("json", "clip"), ("sentencepiece", "siglip"), ("padded pieces", "siglip")],
)
def test_transformers_makes_the_same_ids_of_what_is_written(transformers, tmp_path, name, family):
    made = encoders(tmp_path)
    (tmp_path / "padded.model").write_bytes(pieces(tmp_path, pad_id=3, pad_piece="<pad>"))
    made["padded pieces"] = open_tokenizer(f"sentencepiece:{tmp_path}/padded.model?pad=<pad>")
    own = open_tokenizer(f"json:{tmp_path}/given.json") if "json" in name else made[name]
    folder = tmp_path / "out"
    folder.mkdir()
    stored(folder, tokenizer.write(TextCodec(own, 8), family)[0])
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = TextCodec(own, 8)(TEXTS)
    found = theirs(TEXTS, padding="max_length", truncation=True)["input_ids"]
    for a, b in zip(ours, found, strict=True):
        end = list(a).index(own.end_id) + 1
        assert list(a[:end]) == list(b[:end])
        assert name == "clip" or list(a) == list(b)  # CLIP's are filled up with another token


def test_others_files_of_clip(tmp_path):
    """CLIP's own numbers make CLIP's own tokenizer, whatever the special tokens are called."""
    vocabulary = build_vocabulary(MERGES)
    numbers = {**vocabulary, "<start>": len(vocabulary), "<end>": len(vocabulary) + 1}
    files = {"merges.txt": f"#version: 0.2\n{MERGES}\n".encode(), "vocab.json": numbers}
    assert tokenizer.read(stored(tmp_path, files), "clip", 7, False) == (TextCodec(Clip(MERGES), 7), [])
    merges = [line.split() for line in MERGES.split("\n")]
    files = {"tokenizer.json": {"model": {"type": "BPE", "vocab": numbers, "merges": merges}}}
    assert tokenizer.read(stored(tmp_path, files), "clip", 7, False) == (TextCodec(Clip(MERGES), 7), [])


def test_a_tokenizer_of_another_kind_beside_clip(tmp_path):
    """The settings name the special tokens, in either spelling."""
    files = {"tokenizer.json": library(("<one>", "<two>", "<three>")).encode()}
    settings = {"bos_token": "<one>", "eos_token": {"content": "<two>"}, "pad_token": "<three>"}
    found, notes = tokenizer.read(stored(tmp_path, {**files, FILE: settings}), "clip", 7, False)
    t = found.tokenizer
    assert (t.start_id, t.end_id, t.pad_id, t.clean, notes) == (0, 1, 2, "none", [])
    assert tokenizer.read(stored(tmp_path, {**files, FILE: settings}), "metaclip_2", 7, False)[0] == found
    found, _ = tokenizer.read(stored(tmp_path, {**files, FILE: settings}), "siglip", 7, False)
    assert (found.tokenizer.start_id, found.tokenizer.clean) == (None, "canonicalize")
    found, notes = tokenizer.read({"tokenizer.json": tmp_path / "tokenizer.json"}, "clip", 7, False)
    assert found is None and len(notes) == 1 and "is not there" in notes[0]


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.model"])
def test_siglip_is_sentencepiece(tmp_path, name):
    """Version 1 has no padding but its end; version 2, with Gemma's vocabulary, has."""
    files = {name: pieces(tmp_path, pad_id=3, pad_piece="<pad>"), "tokenizer.json": library().encode()}
    found, notes = tokenizer.read(stored(tmp_path, files), "siglip", 7, False)
    t = found.tokenizer
    assert (t.state()["kind"], t.end_id, t.pad_id, t.start_id, t.clean) == ("sentencepiece", 2, 2, None, "canonicalize")
    assert notes == []
    gemma = tokenizer.read(stored(tmp_path, files), "siglip", 7, True)[0].tokenizer
    assert (gemma.pad_id, gemma.clean) == (3, "lower")


def test_what_is_written_says_how_texts_are_cut():
    files, _ = tokenizer.write(TextCodec(Bytes(), 5), "siglip")
    assert files[FILE] == {OWN: {"kind": "bytes", "length": 5}, "model_max_length": 5}
