"""The tokenizer of open_clip's models: CLIP's, which its files take for granted, or one whose files lie beside them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.fields import token
from vit_jax.convert.hf import tokenizer
from vit_jax.data import text
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.io.sidecar import About
from vit_jax.types import UserError

CLIP_SIZE = 49408
"""Tokens of CLIP's vocabulary."""
CLEANS = ("canonicalize", "lower", "whitespace")
"""What open_clip can do to texts, in its words and ours."""


def read(about: About, said: Mapping[str, Any], length: int, vocab_size: int) -> tuple[TextCodec | None, list[str]]:
    """The encoder of a model, None and a note where there is none.

    Args:
      about: what lies beside the weights.
      said: ``text_cfg``.
      length: tokens of a text.
      vocab_size: of the text tower.

    Raises:
      UserError: a tokenizer's file is damaged or of another kind.
    """
    settings = about.get(tokenizer.FILE) or {}
    if tokenizer.OWN in settings:
        return tokenizer.read(about, "clip", length, gemma=False)
    given = said.get("tokenizer_kwargs") or {}
    name = said.get("hf_tokenizer_name")
    if name:
        return _named(about, settings, str(name), {**said, **given}, length)
    if vocab_size != CLIP_SIZE:
        return None, [f"texts have to come as tokens: {vocab_size:,} are not CLIP's, and no tokenizer is named"]
    clean = f"?clean={given['clean']}" if "clean" in given else ""
    return text.find(f"clip:{clean}", length)


def _named(
    about: About, settings: Mapping[str, Any], name: str, said: Mapping[str, Any], length: int
) -> tuple[TextCodec | None, list[str]]:
    if odd := next((key for key in ("strip_sep_token", "tokenizer_mode") if said.get(key)), None):
        return None, [f"texts have to come as tokens: {odd}={said[odd]!r} of its tokenizer is not known here"]
    clean = said.get("clean", "whitespace")
    if "tokenizer.json" in about:
        path = about["tokenizer.json"]
        ends = {**_ends(path), "pad": token(settings.get("pad_token")), "clean": clean}
        options = "&".join(f"{key}={token}" for key, token in ends.items() if token is not None)
        return TextCodec(open_tokenizer(f"json:{path}?{options}"), length), []
    for file in tokenizer.PIECES:
        if file in about:
            pad = "&pad=<pad>" if token(settings.get("pad_token")) == "<pad>" else ""
            return TextCodec(open_tokenizer(f"sentencepiece:{about[file]}?clean={clean}{pad}"), length), []
    return None, [f"texts have to come as tokens: the tokenizer.json of {name!r} is not beside the weights"]


def _ends(path: pathlib.Path) -> dict[str, str]:
    """What the file puts before and after a text, by our names of options; an empty start means none."""
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_file(str(path))
        ids = library.encode("", add_special_tokens=True).ids
    except Exception as e:  # the library raises bare exceptions
        raise UserError(f"{path} is no JSON of the tokenizers library ({e}); get it again, or remove it.") from e
    if not 1 <= len(ids) <= 2:
        return {}
    tokens = [str(library.id_to_token(i)) for i in ids]
    return {"start": tokens[0] if len(ids) == 2 else "", "end": tokens[-1]}


def write(encoder: TextCodec | None, pool: str = "end") -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What ``text_cfg`` says of the tokenizer, the files beside the weights, and what open_clip does otherwise.

    Args:
      encoder: None where there is none.
      pool: of the text tower, which tells whether padding matters.
    """
    if encoder is None:
        return {}, {}, ["no tokenizer is known, none is written: open_clip takes CLIP's"]
    state = encoder.tokenizer.state()
    clean = state.get("clean", "lower")
    kwargs = {"tokenizer_kwargs": {"clean": clean}} if clean in CLEANS else {}
    said: dict[str, Any] = {"pad_id": encoder.tokenizer.pad_id} if encoder.tokenizer.pad_id else {}
    if state["kind"] == "clip" and encoder.tokenizer.vocab_size == CLIP_SIZE and clean in CLEANS:
        return {**said, **(kwargs if clean != "lower" else {})}, {}, []
    files, notes = tokenizer.write(encoder, "clip" if pool in ("end", "cls") else "siglip")
    if state["kind"] in tokenizer.HOMES:  # a folder's own files, whatever the name says
        said |= {"hf_tokenizer_name": "local", **kwargs}
    notes = [n for n in notes if "cleaned here" not in n] if clean in CLEANS else notes
    return said, files, notes
