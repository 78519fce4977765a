"""A tokenizer as files that others read: cleaning, special tokens, cutting and padding inside where the format can."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer.base import unpack
from vit_jax.data.tokenizer.byte import SHIFT, Bytes
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.data.tokenizer.hf_json import Json
from vit_jax.data.tokenizer.sentencepiece import SentencePiece
from vit_jax.io import jsonfile

JSON, PIECES = "tokenizer.json", "tokenizer.model"
_BLANKS = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
NORMALIZERS: dict[str, list[Any]] = {
    "none": [],
    "whitespace": _BLANKS,
    "lower": [*_BLANKS, normalizers.Lowercase()],
    "canonicalize": [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
        normalizers.Lowercase(),
        *_BLANKS,
    ],
}
"""The rows of :data:`vit_jax.data.tokenizer.clean.CLEAN` without the repair of mojibake and HTML entities."""
_CLEAN = {
    "none": "text",
    "whitespace": "' '.join(text.split())",
    "lower": "' '.join(text.split()).lower()",
    "canonicalize": "' '.join(text.replace('_', ' ').translate(no_punctuation).lower().split())",
}


class Written(NamedTuple):
    """How texts become tokens.

    Attributes:
      about: plain data: file, length, ids of the special tokens, cleaning.
      imports: packages that ``script`` takes.
      script: lines of Python from ``texts`` to ``tokens``, int32[N, length].
      notes: one human-readable note per thing that is not there.
    """

    about: dict[str, Any]
    imports: tuple[str, ...]
    script: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write(codec: TextCodec | None, length: int, folder: pathlib.Path) -> Written:
    """Writes the tokenizer's file into ``folder``.

    Args:
      codec: None where none is known.
      length: tokens of a text.
      folder: exists.
    """
    if codec is None:
        return _unknown(length, "no tokenizer is known")
    t = codec.tokenizer
    ids = {"start_id": t.start_id, "end_id": t.end_id, "pad_id": t.pad_id}
    cleaned = t.clean if isinstance(t, Clip | Json | SentencePiece) else "none"
    about = {"length": codec.length, "vocab_size": t.vocab_size, **ids, "clean": cleaned}
    notes = () if cleaned == "none" else ("mojibake and HTML entities in texts are repaired here and not there",)
    if isinstance(t, SentencePiece):
        (folder / PIECES).write_bytes(unpack(t.state()["data"]))
        return Written({"file": PIECES, **about}, ("sentencepiece", "string"), _pieces(codec, cleaned), notes)
    if not isinstance(t, Clip | Json | Bytes):
        return _unknown(length, f"a tokenizer {type(t).__name__} has no file of others")
    _completed(_bytes() if isinstance(t, Bytes) else t.library, codec, cleaned).save(str(folder / JSON))
    lines = (
        f"tokenizer = tokenizers.Tokenizer.from_file('{JSON}')",
        "tokens = numpy.array([text.ids for text in tokenizer.encode_batch(texts)], numpy.int32)",
    )
    return Written({"file": JSON, **about}, ("tokenizers",), lines, notes)


def _unknown(length: int, why: str) -> Written:
    line = f"tokens = numpy.load('tokens.npy')  # int32[N, {length}]"
    return Written({"file": None, "length": length}, (), (line,), (f"{why}: texts have to come as tokens",))


def _bytes() -> tokenizers.Tokenizer:
    """UTF-8 bytes as byte pairs of which none is ever joined."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the others follow from code point 256 on
    order = [*printable, *(b for b in range(256) if b not in printable)]
    names = {b: chr(b if i < len(printable) else 256 + i - len(printable)) for i, b in enumerate(order)}
    special = {"<pad>": Bytes.pad_id, "<start>": Bytes.start_id, "<end>": Bytes.end_id}
    library = tokenizers.Tokenizer(models.BPE({**special, **{name: b + SHIFT for b, name in names.items()}}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return library


def _completed(library: tokenizers.Tokenizer, codec: TextCodec, cleaned: str) -> tokenizers.Tokenizer:
    """``library`` with what it does not do for us: cleaning, start and end, cutting, padding."""
    t = codec.tokenizer
    state = jsonfile.loads(library.to_str())
    ids = {"<start>": t.start_id, "<end>": t.end_id, "<pad>": t.pad_id}
    names = {name: library.id_to_token(i) or name for name, i in ids.items() if i is not None}
    for name, known in names.items():
        if library.token_to_id(known) is None:  # CLIP's, which no text is to spell
            state["model"]["vocab"][known] = ids[name]
    library = tokenizers.Tokenizer.from_str(json.dumps(state))
    steps = [*NORMALIZERS[cleaned], *([library.normalizer] if library.normalizer else [])]
    if steps:
        library.normalizer = normalizers.Sequence(steps)
    around = [name for name in ("<start>", "<end>") if name in names]
    template = [names[name] for name in around[:-1]] + ["$A", names["<end>"]]
    special = [(names[name], ids[name]) for name in around]
    library.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    library.enable_truncation(codec.length)
    library.enable_padding(length=codec.length, pad_id=t.pad_id, pad_token=names["<pad>"])
    return library


def _pieces(codec: TextCodec, cleaned: str) -> tuple[str, ...]:
    t = codec.tokenizer
    start = "" if t.start_id is None else f"{t.start_id}, "
    room = codec.length - 1 - (t.start_id is not None)
    return (
        "no_punctuation = str.maketrans('', '', string.punctuation)",
        f"pieces = sentencepiece.SentencePieceProcessor(model_file='{PIECES}')",
        f"rows = [[{start}*pieces.encode({_CLEAN[cleaned]})[:{room}], {t.end_id}] for text in texts]",
        f"tokens = numpy.array([row + [{t.pad_id}] * ({codec.length} - len(row)) for row in rows], numpy.int32)",
    )
