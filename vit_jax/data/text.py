"""Captions to rows of token ids: a tokenizer and a context length, and how a configuration names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from vit_jax.data.prompts import read_templates
from vit_jax.data.tokenizer import Tokenizer, open_tokenizer
from vit_jax.types import UserError


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
class TextConfig:
    """How captions are read.

    Attributes:
      tokenizer: ``"bytes"``, ``"clip"``, ``"clip:PATH"``, ``"json:PATH"`` or ``"sentencepiece:PATH"``, see
        :func:`vit_jax.data.tokenizer.open_tokenizer`.
      length: context length: tokens of a caption, start and end included; longer captions are cut, keeping the end.
      choose: which of an image's captions trains: a ``"random"`` one each time (LaCLIP, Fan et al. 2023), or the
        ``"first"``.
      templates: makes captions of class names: a row of :data:`vit_jax.data.prompts.TEMPLATES`, or a file.
    """

    tokenizer: str = "bytes"
    length: int = 77
    choose: Literal["random", "first"] = "random"
    templates: str | None = None

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UserError(f"length={self.length} is too small; start, one token and end take 3.")
        if self.choose not in ("random", "first"):
            raise UserError(f"choose={self.choose!r} is not allowed; allowed: first, random.")
        if self.templates is not None:
            read_templates(self.templates)

    def encoder(self) -> TextCodec:
        """Opens the tokenizer."""
        return TextCodec(open_tokenizer(self.tokenizer), self.length)
