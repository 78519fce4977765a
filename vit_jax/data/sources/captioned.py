"""Captions added to, or chosen from, the examples of another source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vit_jax.data.prompts import ensemble
from vit_jax.data.sources.base import Record, Source
from vit_jax.data.text import TextCodec


class Captioned:
    """A classification source whose captions are its class names in every template; the labels stay."""

    def __init__(self, source: Source, templates: Sequence[str]):
        self.source = source
        self.captions = [tuple(texts) for texts in ensemble(source.info.class_names, templates)]
        self.info = dataclasses.replace(source.info, captions=len(templates))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        return {**record, "captions": self.captions[record["label"]]}


class WithTokenizer:
    """A source whose captions are wanted as tokens: the same examples, with ``info.encoder``.

    ``first`` keeps an image's first caption only.
    """

    def __init__(self, source: Source, encoder: TextCodec, *, first: bool = False):
        self.source, self.first = source, first
        captions = min(source.info.captions, 1) if first else source.info.captions
        self.info = dataclasses.replace(source.info, encoder=encoder, captions=captions)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        return {**record, "captions": record.get("captions", ())[:1]} if self.first else record
