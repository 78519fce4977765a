"""UTF-8 bytes: a vocabulary of 259 that needs no file and loses nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.tokenizer.base import State, Stateful, content

SHIFT = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Bytes(Stateful):
    """Byte b is id b + 3; 0 pads, 1 starts, 2 ends. Every string round-trips, lone surrogates too."""

    vocab_size: int = 256 + SHIFT
    pad_id: int = 0
    start_id: int = 1
    end_id: int = 2

    @classmethod
    def open(cls, rest: str) -> Bytes:
        return cls()

    def ids(self, text: str) -> list[int]:
        return [b + SHIFT for b in text.encode("utf-8", "surrogatepass")]

    def text(self, ids: Sequence[int]) -> str:
        """Ids that form no UTF-8, as a model may write them, become U+FFFD."""
        data = bytes(i - SHIFT for i in content(self, ids) if SHIFT <= i < self.vocab_size)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def state(self) -> State:
        return {"kind": "bytes"}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Bytes:
        return cls()
