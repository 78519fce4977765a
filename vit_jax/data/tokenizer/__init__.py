"""Text to token ids: one protocol, opened by name, saved with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_jax.config import lookup
from vit_jax.data.tokenizer.base import State, Tokenizer, fingerprint
from vit_jax.data.tokenizer.byte import Bytes
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.data.tokenizer.hf_json import Json
from vit_jax.data.tokenizer.sentencepiece import SentencePiece
from vit_jax.types import UserError

TOKENIZERS: dict[str, Any] = {"bytes": Bytes, "clip": Clip, "json": Json, "sentencepiece": SentencePiece}


def open_tokenizer(spec: str) -> Tokenizer:
    """Opens ``kind`` or ``kind:PATH?option=value&option=value``.

    - ``"bytes"``: UTF-8, needs no file.
    - ``"clip"``: CLIP's byte pairs, which come with this package; ``"clip:PATH"`` others, from ``merges.txt``,
      ``bpe_simple_vocab_16e6.txt.gz``, ``tokenizer.json`` or a folder with one of them.
    - ``"json:PATH"``: a file of the `tokenizers` library, see :class:`~vit_jax.data.tokenizer.hf_json.Json`.
    - ``"sentencepiece:PATH"``: a ``.model`` file.

    Options: ``start``, ``end``, ``pad`` (names of tokens; ``json`` and ``sentencepiece``) and ``clean`` (a row of
    :data:`~vit_jax.data.tokenizer.clean.CLEAN`; all but ``bytes``).

    Raises:
      UserError: unknown kind or option, a file that is missing, damaged or of another kind, or no end token in it.
    """
    kind, _, rest = spec.partition(":")
    row = lookup(TOKENIZERS, kind, "tokenizer")
    if kind == "bytes" and rest:
        raise UserError(f"the tokenizer 'bytes' takes no file, but got {rest!r}.")
    if kind in ("json", "sentencepiece") and not rest.partition("?")[0]:
        raise UserError(f"the tokenizer {spec!r} names no file; write {kind}:PATH.")
    return row.open(rest)


def from_state(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of which ``state`` was taken.

    Raises:
      UserError: the state is damaged.
    """
    if not isinstance(state, Mapping) or "kind" not in state:
        raise UserError(f"{state!r:.80} is no tokenizer's state; it lacks 'kind'.")
    return lookup(TOKENIZERS, state["kind"], "tokenizer").from_state(state)


__all__ = ["TOKENIZERS", "State", "Tokenizer", "fingerprint", "from_state", "open_tokenizer"]
