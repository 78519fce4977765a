"""The tokenizer files of transformers' image-text models <-> our :class:`TextCodec`.

What the files leave open, as which token fills up or how texts are cleaned, is under our own key of
``tokenizer_config.json`` in what we write: it comes back equal. Of others' files it is taken from their settings and
from the model's family.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.fields import token
from vit_jax.convert.hf.clip_rules import CLIPS
from vit_jax.data import text
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import from_state
from vit_jax.data.tokenizer.base import pack, unpack
from vit_jax.data.tokenizer.clip import build_vocabulary, read_merges
from vit_jax.io import jsonfile
from vit_jax.io.sidecar import About

FILE = "tokenizer_config.json"
OWN = "vit_jax"
"""Our key: the state of the tokenizer without its data, and the length of texts."""
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
HOMES = {"clip": "merges.txt", "json": "tokenizer.json", "sentencepiece": "spiece.model"}
"""Which file holds the data of a tokenizer of ours, by its kind."""
PIECES = ("spiece.model", "sentencepiece.model", "tokenizer.model")
"""What SentencePiece's models are called."""
MERGES_HEADER = "#version: 0.2\n"


def read(about: About, family: str, length: int, gemma: bool) -> tuple[TextCodec | None, list[str]]:
    """The encoder behind the files, None where there is none, and one note for each thing that is missing.

    Args:
      about: what lies beside the weights; tokenizer files are paths.
      family: as of :data:`.clip_rules.FAMILIES`.
      length: tokens of a text.
      gemma: whether the vocabulary is SigLIP 2's.
    """
    settings = about.get(FILE) or {}
    if OWN in settings:
        return _own(settings[OWN], about)
    why: list[str] = []
    for spec in _candidates(about, settings, family, gemma):
        encoder, notes = text.find(spec, length)
        if encoder is not None:
            return encoder, []
        why = why or notes
    return None, why or ["no tokenizer lies beside the weights: texts have to come as tokens"]


def _own(state: Mapping[str, Any], about: About) -> tuple[TextCodec, list[str]]:
    home = HOMES.get(state["kind"])
    if home is None:
        return TextCodec(from_state(state), state["length"]), []
    data = read_merges(about[home]).encode() if home == HOMES["clip"] else pathlib.Path(about[home]).read_bytes()
    return TextCodec(from_state({**state, "data": pack(data)}), state["length"]), []


def _candidates(about: About, settings: Mapping[str, Any], family: str, gemma: bool) -> list[str]:
    """Specs in the order in which they are tried: what the model was made with, then whatever opens."""
    there = {name: str(path) for name, path in about.items() if isinstance(path, pathlib.Path)}
    found = []
    if family == "clip":
        found += [f"clip:{there[name]}" for name in ("tokenizer.json", "merges.txt") if name in there]
    clean = "none" if family in CLIPS else "lower" if gemma else "canonicalize"
    pad = "&pad=<pad>" if gemma else ""
    for name in PIECES:
        if name in there:
            found.append(f"sentencepiece:{there[name]}?clean={clean}{pad}")
    if "tokenizer.json" in there:
        named = {"end": "eos_token", "pad": "pad_token", "start": "bos_token"}
        tokens = {ours: token(settings.get(theirs)) for ours, theirs in named.items()}
        if family not in CLIPS:  # SigLIP has no start, whatever its tokenizer calls one
            tokens["start"] = ""
        options = [f"{name}={token}" for name, token in tokens.items() if token is not None]
        found.append(f"json:{there['tokenizer.json']}?{'&'.join([*options, f'clean={clean}'])}")
    return found


def write(encoder: TextCodec | None, family: str) -> tuple[dict[str, Any], list[str]]:
    """The files, and one note for each thing that transformers does otherwise.

    Args:
      encoder: None where there is none.
      family: as of :data:`.clip_rules.FAMILIES`; features of SigLIP's also depend on what fills a text up.
    """
    if encoder is None:
        return {}, ["no tokenizer is known, none is written"]
    state = encoder.tokenizer.state()
    own = {**{k: v for k, v in state.items() if k != "data"}, "length": encoder.length}
    settings: dict[str, Any] = {OWN: own, "model_max_length": encoder.length}
    kind = state["kind"]
    if kind not in HOMES:
        note = f"transformers has no tokenizer like {kind!r}: only vit_jax encodes texts for this model"
        return {FILE: settings}, [note]
    files, more, cleans = {"clip": _clip, "sentencepiece": _sentencepiece, "json": _json}[kind](state)
    notes = [] if state["clean"] == cleans else [_CLEANED.format(state["clean"])]
    if kind == "json" and not jsonfile.loads(files[HOMES[kind]]).get("post_processor"):
        notes.append("transformers adds no end token to texts with this tokenizer.json; append it there")
    if kind == "sentencepiece" and state["start_id"] is not None:
        notes.append(f"texts begin with token {state['start_id']} here, which transformers does not add")
    pad = encoder.tokenizer.pad_id
    if family not in CLIPS and (kind == "clip" or "pad_token" not in more):
        notes.append(f"texts are filled up with token {pad} here, which transformers' tokenizer does not do: pad there")
    return {**files, FILE: {**settings, **more}}, notes


_CLEANED = "texts are cleaned here ({!r}), which transformers does otherwise: clean them before"
Written = tuple[dict[str, Any], dict[str, Any], str]
"""Files with a tokenizer's data, settings, and how transformers cleans texts."""


def _clip(state: Mapping[str, Any]) -> Written:
    """Padding with the end token, as transformers' CLIP: nothing behind the end token changes a text's features."""
    merges, (start, end) = unpack(state["data"]).decode(), CLIP_ENDS
    vocabulary = build_vocabulary(merges)
    numbers = {**vocabulary, **{token: len(vocabulary) + i for i, token in enumerate(CLIP_ENDS)}}
    named = {"bos_token": start, **dict.fromkeys(("eos_token", "unk_token", "pad_token"), end)}
    files = {"vocab.json": numbers, HOMES["clip"]: f"{MERGES_HEADER}{merges}\n".encode()}
    return files, {"tokenizer_class": "CLIPTokenizer", **named}, "lower"


def _sentencepiece(state: Mapping[str, Any]) -> Written:
    import sentencepiece

    data = unpack(state["data"])
    piece = sentencepiece.SentencePieceProcessor(model_proto=data).id_to_piece
    named = {"eos_token": piece(state["end_id"]), "pad_token": piece(state["pad_id"])}
    return {HOMES["sentencepiece"]: data}, {"tokenizer_class": "SiglipTokenizer", **named}, "canonicalize"


def _json(state: Mapping[str, Any]) -> Written:
    data = unpack(state["data"])
    known = {token["id"]: token["content"] for token in jsonfile.loads(data).get("added_tokens") or ()}
    ids = {"bos_token": state["start_id"], "eos_token": state["end_id"], "pad_token": state["pad_id"]}
    named = {name: known[i] for name, i in ids.items() if i in known}
    return {HOMES["json"]: data}, {"tokenizer_class": "PreTrainedTokenizerFast", **named}, "none"
