"""Filling the rows of a batch from a source: images, labels and, where they are wanted, captions as tokens."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Literal, NamedTuple

import numpy as np

from vit_jax.data.framing import Framing
from vit_jax.data.image import MAX_PIXELS, decode
from vit_jax.data.sources.base import Source, Unreadable, valid_captions
from vit_jax.data.text import TextCodec
from vit_jax.io import reads
from vit_jax.types import UserError

OnError = Literal["raise", "skip"]
Mode = Literal["train", "eval"]
MAX_SKIPPED = 0.01
"""Share of a source's examples that ``on_error="skip"`` may leave out (one of them always may)."""
TIMEOUT = 300.0
"""Seconds that one example may take: a disk that is only busy, or tried again, takes less."""


class Filled(NamedTuple):
    """What filling rows met: unreadable examples (index -> reason) and how many captions did not fit."""

    unreadable: dict[int, str]
    truncated: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """How rows of a batch are filled from a source.

    An unreadable example raises with ``on_error="raise"``. With ``"skip"`` the next readable one takes its place in
    ``mode="train"``, which is a pure function of the data; with ``"eval"`` its row is masked. Training takes one
    caption of an image, evaluation all.
    """

    source: Source
    canvas: int
    frame: Framing
    mode: Mode
    on_error: OnError
    max_pixels: int = MAX_PIXELS
    timeout: float = TIMEOUT
    _begun: dict[int, tuple[float, int]] = dataclasses.field(default_factory=dict, init=False, compare=False)

    @property
    def may_skip(self) -> int:
        return min(len(self.source) - 1, max(1, int(MAX_SKIPPED * len(self.source))))

    def empty(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of the examples ``rows`` (-1: padding) before any image is read."""
        mask = rows >= 0
        batch: dict[str, np.ndarray] = {
            "image": np.zeros((len(rows), self.canvas, self.canvas, 3), np.uint8),
            "size": np.full((len(rows), 2), self.canvas, np.int32),
            "label": np.zeros(len(rows), np.int32),
            "mask": mask,
            "index": np.where(mask, rows, 0).astype(np.uint32),
        }
        if (encoder := self.source.info.encoder) is not None:
            shape = (encoder.length,) if self.mode == "train" else (self.source.info.captions, encoder.length)
            batch["text"] = np.full((len(rows), *shape), encoder.tokenizer.pad_id, np.int32)
            if self.mode == "eval":
                batch["captions"] = np.zeros(len(rows), np.int32)
        return batch

    def fill(self, batch: dict[str, np.ndarray], rows: slice, draws: np.ndarray | None = None) -> Filled:
        """Reads some rows; ``draws`` uint64[B] choose the caption of each row in training."""
        unreadable: dict[int, str] = {}
        truncated = 0
        for row in range(*rows.indices(len(batch["mask"]))):
            while batch["mask"][row]:
                index = int(batch["index"][row])
                self._begun[threading.get_ident()] = time.monotonic(), index
                try:
                    truncated += self._read(index, batch, row, 0 if draws is None else int(draws[row]))
                    break
                except Unreadable as e:
                    if self.on_error == "raise":
                        raise UserError(f"{e}; repair or remove it, or set data.on_error='skip'.") from None
                    unreadable[index] = str(e)
                finally:
                    del self._begun[threading.get_ident()]
                if self.mode == "train" and len(unreadable) <= self.may_skip:  # beyond that the consumer raises
                    batch["index"][row] = (index + 1) % len(self.source)
                else:
                    batch["mask"][row] = False
        return Filled(unreadable, truncated)

    def overdue(self) -> str:
        """What a thread has been reading for more than ``timeout`` seconds, as part of a sentence; "" if none has."""
        now = time.monotonic()
        for thread, (begun, index) in list(self._begun.items()):
            if now - begun > self.timeout:
                return f"example {index}{f' ({what})' if (what := reads.by(thread)) else ''}"
        return ""

    def _read(self, index: int, batch: dict[str, np.ndarray], row: int, draw: int) -> int:
        """Fills one row; returns how many of its captions did not fit."""
        record, info = self.source[index], self.source.info
        if not 0 <= record["label"] < max(info.num_classes, 1):
            top = max(info.num_classes, 1) - 1
            raise UserError(f"the label {record['label']} of {record['name']} is outside 0..{top}.")
        captions = valid_captions(record) if info.encoder else ()  # before anything is written
        batch["image"][row], batch["size"][row] = decode(record, self.canvas, self.frame, self.max_pixels, fast=True)
        batch["label"][row] = record["label"]
        if info.encoder is None:
            return 0
        if self.mode == "train":
            return _write(info.encoder, captions[draw % len(captions)], batch["text"][row])
        assert len(captions) <= info.captions, (record["name"], len(captions), info.captions)
        batch["captions"][row] = len(captions)
        return sum(_write(info.encoder, *pair) for pair in zip(captions, batch["text"][row], strict=False))


def _write(encoder: TextCodec, caption: str, row: np.ndarray) -> bool:
    """Writes a caption over padding int32[L]; True if it did not fit."""
    ids, cut = encoder.row(caption)
    row[: len(ids)] = ids
    return cut > 0
