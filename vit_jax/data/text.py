"""Captions to rows of token ids: a tokenizer and a context length, how a configuration names them, and what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vit_jax.checks import Checked, Length
from vit_jax.config import record_of
from vit_jax.data.prompts import read_templates
from vit_jax.data.tokenizer import Tokenizer, from_state, open_tokenizer
from vit_jax.types import UserError

NAMED = ("bytes", "clip")
"""Tokenizers that a word names; others are files."""


@dataclasses.dataclass(frozen=True)
class TextCodec:
    """A text codec: start + content + end, cut so that the end token is kept, filled up with ``pad_id``.

    Attributes:
      tokenizer: the mapping between texts and ids.
      length: context length: tokens of a row, start and end included.
    """

    tokenizer: Tokenizer
    length: int

    def row(self, text: str) -> tuple[list[int], int]:
        """The tokens of one text, at most ``length`` and not padded, and how many tokens did not fit.

        Raises:
          UserError: the tokenizer made an id outside its vocabulary: it is damaged.
        """
        t = self.tokenizer
        ids = t.ids(text)
        if ids and not 0 <= min(ids) <= max(ids) < t.vocab_size:
            raise UserError(
                f"the tokenizer made the ids {min(ids)} to {max(ids)} of {text!r:.80}, but its vocabulary has "
                f"{t.vocab_size:,}; it is damaged."
            )
        start = [] if t.start_id is None else [t.start_id]
        room = self.length - len(start) - 1
        return [*start, *ids[:room], t.end_id], max(len(ids) - room, 0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32[len(texts), length]."""
        out = np.full((len(texts), self.length), self.tokenizer.pad_id, np.int32)
        for row, text in zip(out, texts, strict=True):
            ids, _ = self.row(text)
            row[: len(ids)] = ids
        return out

    def truncated(self, texts: Iterable[str]) -> int:
        """How many of ``texts`` do not fit."""
        return sum(self.row(text)[1] > 0 for text in texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one row: int[N], up to its first end token."""
        return self.tokenizer.text(np.asarray(ids).tolist())


@dataclasses.dataclass(frozen=True)
class TextConfig(Checked):
    """How captions are read.

    Attributes:
      tokenizer: ``"bytes"``, ``"clip"``, ``"clip:PATH"``, ``"json:PATH"`` or ``"sentencepiece:PATH"``, see
        :func:`vit_jax.data.tokenizer.open_tokenizer`; ``"init"``, that of the weights which ``init`` names; or from
        Python a tokenizer.
      length: context length: tokens of a caption, start and end included; longer captions are cut, keeping the end.
      choose: which of an image's captions trains: a ``"random"`` one each time (LaCLIP, Fan et al. 2023), or the
        ``"first"``.
      templates: makes captions of class names: a row of :data:`vit_jax.data.prompts.TEMPLATES`, or a file.
    """

    tokenizer: str | Tokenizer = "bytes"
    length: Length = 77
    choose: Literal["random", "first"] = "random"
    templates: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose not in ("random", "first"):
            raise UserError(f"choose={self.choose!r} is not allowed; allowed: first, random.")
        if self.templates is not None:
            read_templates(self.templates)

    def encoder(self) -> TextCodec:
        """Opens the tokenizer."""
        t = self.tokenizer
        return TextCodec(open_tokenizer(t) if isinstance(t, str) else t, self.length)


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
        known = record_of(kept, {"state": dict[str, Any], "length": Length}, "tokenizer")
        return TextCodec(from_state(known["state"]), known["length"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"the checkpoint's tokenizer is damaged ({e}); take another checkpoint.") from e


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
