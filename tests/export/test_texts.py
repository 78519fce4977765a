"""A tokenizer's file and the lines that use it against the tokenizer itself."""

import io

import numpy as np
import pytest
import sentencepiece

from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.train import train
from vit_jax.export import texts

CAPTIONS = ["a photo of a cat", "two dogs on the grass", "a seven, left of a_three", "isn't it the BIG apple?"] * 8
MERGES = ["t h", "th e</w>", "a t</w>", "c at</w>", "p h", "o t", "ot o</w>", "ph oto</w>", "' s</w>", "o f</w>"]
PROBES = [
    "a photo of a cat",
    "<start> the <end>",
    "A  Photo,\tof the CAT's hat!",
    "",
    "über 17 dogs_and cats",
    "the " * 30,
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """What opens each kind, by kind and cleaning."""
    folder, data = tmp_path_factory.mktemp("tokenizers"), io.BytesIO()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (folder / "tokenizer.json").write_text(train(CAPTIONS, 300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=data, vocab_size=50, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(data.getvalue())
    return {
        "bytes": "bytes",
        "clip": f"clip:{folder}/merges.txt",
        "clip, canonicalize": f"clip:{folder}/merges.txt?clean=canonicalize",
        "json": f"json:{folder}/tokenizer.json",
        "json, lower": f"json:{folder}/tokenizer.json?clean=lower",
        "sentencepiece": f"sentencepiece:{folder}/spiece.model",
    }


KINDS = ("bytes", "clip", "clip, canonicalize", "json", "json, lower", "sentencepiece")


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_makes_the_same_tokens(specs, tmp_path, monkeypatch, kind):
    codec = TextCodec(open_tokenizer(specs[kind]), 12)
    written = texts.write(codec, 12, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [written.about["file"]]
    assert written.about["file"] == ("tokenizer.model" if kind == "sentencepiece" else "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    found = {"texts": PROBES}
    exec("\n".join([f"import {', '.join(('numpy', *written.imports))}", *written.script]), found)
    np.testing.assert_array_equal(found["tokens"], codec(PROBES))
    assert found["tokens"].dtype == np.int32 and written.about["end_id"] == codec.tokenizer.end_id
    assert any("mojibake" in note for note in written.notes) == (kind not in ("bytes", "json"))


def test_without_a_tokenizer_texts_come_as_tokens(tmp_path):
    written = texts.write(None, 12, tmp_path)
    assert list(tmp_path.iterdir()) == [] and written.about == {"file": None, "length": 12}
    assert written.notes == ("no tokenizer is known: texts have to come as tokens",)
    assert written.script == ("tokens = numpy.load('tokens.npy')  # int32[N, 12]",)
