"""SentencePiece with SigLIP's conventions, against another implementation of the same model."""

import builtins

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers

from tests.data.tokenizer.texts import NASTY
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.clean import canonicalize
from vit_jax.data.tokenizer.sentencepiece import SentencePiece
from vit_jax.types import UserError


def test_conventions_of_siglip(model_file):
    t = SentencePiece.open(str(model_file))
    assert (t.end_id, t.pad_id, t.start_id, t.clean) == (1, 1, None, "canonicalize")
    assert t.ids("A Photo_of, a CAT!") == t.ids("a photo of a cat")
    assert t.text([*t.ids("A Photo of a cat."), 1, 1]) == "a photo of a cat"
    raw = SentencePiece.open(f"{model_file}?clean=none")
    assert raw.ids("A Photo") != raw.ids("a photo") and raw.ids("a photo") == t.ids("A PHOTO")


def test_pieces_may_be_named(model_file):
    t = open_tokenizer(f"sentencepiece:{model_file}?pad=<pad>&start=<unk>")
    assert (t.end_id, t.pad_id, t.start_id) == (1, 0, 2)
    with pytest.raises(UserError, match="did you mean '<pad>'"):
        open_tokenizer(f"sentencepiece:{model_file}?pad=<pat>")


def test_equals_another_implementation(model_file):
    """Viterbi over the pieces' scores, by the `tokenizers` library."""
    model = sentencepiece.SentencePieceProcessor(model_proto=model_file.read_bytes())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    peer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    peer.pre_tokenizer = pre_tokenizers.Metaspace()
    t = SentencePiece.open(str(model_file))
    texts = [text for text in NASTY if canonicalize(text).isascii()]
    assert len(texts) > 12
    for text in texts:
        assert t.ids(text) == peer.encode(canonicalize(text)).ids


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\xff\x0f"])
def test_damaged_files_are_sentences(tmp_path, content):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(UserError, match="no SentencePiece model"):
        SentencePiece.open(str(tmp_path / "x.model"))


def test_a_cut_file_is_a_sentence(tmp_path, model_file):
    (tmp_path / "x.model").write_bytes(model_file.read_bytes()[:-500])
    with pytest.raises(UserError, match="no SentencePiece model"):
        SentencePiece.open(str(tmp_path / "x.model"))


def test_without_the_package(monkeypatch, tmp_path):
    (tmp_path / "x.model").write_bytes(b"x")
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentencepiece":
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install .*\[sentencepiece\]"):
        SentencePiece.open(str(tmp_path / "x.model"))
