"""SentencePiece models (T5's, Gemma's), with the conventions of SigLIP (Zhai et al. 2023, big_vision)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_jax.config import lookup
from vit_jax.data.tokenizer.base import FromFile, content, options, read, well_formed
from vit_jax.io.extras import needed
from vit_jax.types import UserError


class SentencePiece(FromFile):
    """A ``.model`` file, run by the `sentencepiece` package.

    SigLIP pads with the end token and has no start; Gemma's vocabulary (SigLIP 2) pads with ``<pad>``.
    """

    kind = "sentencepiece"

    def _load(self) -> None:
        self._model = _load(self.data)
        self.vocab_size = self._model.vocab_size()

    @classmethod
    def open(cls, rest: str) -> SentencePiece:
        """Of ``"PATH"`` or ``"PATH?pad=<pad>&end=</s>&start=<s>&clean=none"``."""
        path, given = options(rest, ("start", "end", "pad", "clean"))
        data = read(path)
        model = _load(data, path)
        pieces = {model.id_to_piece(i): i for i in range(model.vocab_size())}
        ids = {k: lookup(pieces, v, f"{k} token of {path!r}:") for k, v in given.items() if k != "clean" and v}
        end = ids.get("end", model.eos_id())
        if end < 0:
            raise UserError(f"{path!r} defines no end token; name one: sentencepiece:{path}?end=PIECE.")
        clean = given.get("clean", "canonicalize")
        return cls(data, pad_id=ids.get("pad", end), end_id=end, start_id=ids.get("start"), clean=clean)

    def ids(self, text: str) -> list[int]:
        return self._model.encode(well_formed(self._clean(text)))

    def text(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in content(self, ids) if 0 <= i < self.vocab_size])


def _load(data: bytes, what: str = "a tokenizer's state") -> Any:
    with needed("a SentencePiece model", "sentencepiece"):
        import sentencepiece
    try:
        if not data:
            raise ValueError("0 bytes")
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as e:
        raise UserError(f"{what!r} is no SentencePiece model ({e}); name a .model file.") from e
