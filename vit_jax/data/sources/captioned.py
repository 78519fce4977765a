"""Captions added to, or chosen from, the examples of another source."""

from __future__ import annotations

from collections.abc import Sequence

from vit_jax.data.prompts import ensemble
from vit_jax.data.sources.base import Record, Source, Wrapped, digest
from vit_jax.data.text import TextCodec


class Captioned(Wrapped):
    """A classification source whose captions are its class names in every template; the labels stay."""

    def __init__(self, source: Source, templates: Sequence[str]):
        self.captions = [tuple(texts) for texts in ensemble(source.info.class_names, templates)]
        super().__init__(source, captions=len(templates), digest=digest(source.info.digest, *self.captions))

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        return {**record, "captions": self.captions[record["label"]]}


class WithTokenizer(Wrapped):
    """A source whose captions are wanted as tokens: the same examples, with ``info.encoder``.

    ``first`` keeps an image's first caption only.
    """

    def __init__(self, source: Source, encoder: TextCodec, *, first: bool = False):
        captions = min(source.info.captions, 1) if first else source.info.captions
        super().__init__(source, encoder=encoder, captions=captions)
        self.first = first

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        return {**record, "captions": record.get("captions", ())[:1]} if self.first else record
