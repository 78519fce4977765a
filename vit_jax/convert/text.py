"""What travels with the weights of a text tower: the tokenizer it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import from_state, open_tokenizer
from vit_jax.types import UserError

NAMED = ("bytes", "clip")
"""Tokenizers that a word names; others are files."""


def to_meta(encoder: TextCodec) -> dict[str, Any]:
    """What a checkpoint's metadata keep under "tokenizer": JSON-able and complete, see :func:`from_meta`."""
    return {"state": encoder.tokenizer.state(), "length": encoder.length}


def from_meta(kept: Mapping[str, Any] | None) -> TextCodec | None:
    """The encoder that a checkpoint kept, None where it kept none.

    Raises:
      UserError: it is damaged.
    """
    if kept is None:
        return None
    try:
        return TextCodec(from_state(kept["state"]), int(kept["length"]))
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"the checkpoint's tokenizer is damaged ({e!r}); take another checkpoint.") from e


def section(encoder: TextCodec) -> dict[str, Any]:
    """The codec as the ``data.text`` section of a configuration.

    A tokenizer without a name, such as one read from a file, is the checkpoint's own, kept in its metadata.
    """
    state = encoder.tokenizer.state()
    spec = state["kind"] if state["kind"] in NAMED else f"{state['kind']}:"
    if state["kind"] == "clip" and state["clean"] != "lower":
        spec += f":?clean={state['clean']}"
    return {"tokenizer": spec, "length": encoder.length}


def find(spec: str, length: int) -> tuple[TextCodec | None, list[str]]:
    """The tokenizer ``spec`` for texts of ``length`` tokens; where it is not on this machine None and a note.

    Args:
      spec: the tokenizer, such as ``"clip"`` or ``"sentencepiece:PATH"``.
      length: tokens of a text, start and end included.
    """
    try:
        return TextCodec(open_tokenizer(spec), length), []
    except UserError as e:
        return None, [f"its texts cannot be encoded, as the tokenizer {spec!r} is not there ({e})"]


def check_fits(encoder: TextCodec, tower: Any, source: str) -> None:
    """Raises :class:`UserError` where the tokenizer is not the one of the text tower."""
    t = encoder.tokenizer
    if encoder.length > tower.length:
        raise UserError(
            f"the tokenizer of {source} makes texts of {encoder.length} tokens, its text tower knows {tower.length} "
            "positions; the tokenizer's files are of another model."
        )
    if t.vocab_size > tower.vocab_size:
        raise UserError(
            f"the tokenizer of {source} has {t.vocab_size:,} tokens, its text tower knows {tower.vocab_size:,}; the "
            "tokenizer's files are of another model."
        )
    if tower.pool == "end" and t.end_id != tower.end_id:
        raise UserError(
            f"the tokenizer of {source} ends texts with {t.end_id}, its text tower with {tower.end_id}; the "
            "tokenizer's files are of another model."
        )


def check_same(there: TextCodec | None, here: TextCodec | None, source: str) -> None:
    """Raises :class:`UserError` where texts would be encoded otherwise than they were for the weights of ``source``.

    Args:
      there: of the weights; None where they come without, which is accepted.
      here: of the run; None where it reads no text.
      source: of the weights, for the message.
    """
    if there is None or here is None or there.tokenizer.fingerprint == here.tokenizer.fingerprint:
        return
    kinds = [e.tokenizer.state()["kind"] for e in (there, here)]
    how = section(there)["tokenizer"]
    raise UserError(
        f"{source} was trained with the tokenizer {kinds[0]!r} ({there.tokenizer.vocab_size:,} tokens), the data are "
        f"read with {kinds[1]!r} ({here.tokenizer.vocab_size:,} tokens); set --config.data.text.tokenizer="
        f"{how if kinds[0] in NAMED else f'{how}PATH, the file it came with'}."
    )
