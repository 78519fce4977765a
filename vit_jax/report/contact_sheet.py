"""Pictures of a few images out of many: those found for a caption, and the most confident mistakes."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from vit_jax.augment.patches import pictures
from vit_jax.report import plots
from vit_jax.sharding import replicated_like
from vit_jax.types import Array, Batch, Patches

QUERIES, NEAREST = 8, 5
"""Rows and columns of the contact sheet."""
MISTAKES = 32
"""Images of the other one."""


@functools.lru_cache(maxsize=4)
def _take(replicated: NamedSharding | None) -> Any:
    return jax.jit(lambda x, rows: jax.tree.map(lambda leaf: leaf[rows], x), out_shardings=replicated)


def _rows(x: Array | Patches, rows: np.ndarray, length: int) -> np.ndarray:
    """``x[rows]`` on every host, patches as pictures; compiled once for all ``rows`` up to ``length``."""
    padded = np.zeros(length, np.int32)
    padded[: len(rows)] = rows
    return pictures(_take(replicated_like(x))(x, padded))[: len(rows)]


@dataclasses.dataclass
class ContactSheet:
    """The images nearest to a few captions, found while batches pass, so that only those images are ever kept.

    Attributes:
      captions: the queries, captions of the first batch.
      text: the captions' embeddings, float32[Q, E].
      own: int64[Q], the image that each describes, as counted by ``index``.
      nearest: int64[Q, NEAREST], the best images so far, best first; -1 where there are none yet.
      score: float32[Q, NEAREST], similarities of the best images.
      images: index -> picture float32[H, W, 3] as the model sees it.
      rank: float64[Q], the expected rank of the right image among all; None while there are more to come.
    """

    captions: tuple[str, ...]
    text: np.ndarray
    own: np.ndarray
    nearest: np.ndarray
    score: np.ndarray
    images: dict[int, np.ndarray]
    rank: np.ndarray | None = None

    @classmethod
    def start(cls, batch: Batch, found: dict[str, np.ndarray], encoder: Any) -> ContactSheet | None:
        """Queries are the first captions of images all over the batch; None if no image has one."""
        with_text = np.flatnonzero(found["captions"])
        if not len(with_text):
            return None
        chosen = with_text[np.linspace(0, len(with_text) - 1, min(QUERIES, len(with_text))).astype(np.int64)]
        rows = found["row"][chosen]
        own, count = found["index"][chosen].astype(np.int64), len(chosen)
        captions = tuple(encoder.decode(tokens[0]) for tokens in _rows(batch["text"], rows, QUERIES))
        images = dict(zip(own.tolist(), _rows(batch["image"], rows, QUERIES * NEAREST), strict=True))
        empty = np.full((count, NEAREST), -1, np.int64), np.full((count, NEAREST), -np.inf, np.float32)
        return cls(captions, found["text"][chosen, 0], own, *empty, images)

    def update(self, batch: Batch, found: dict[str, np.ndarray], values: np.ndarray) -> None:
        """Takes in the images of a batch, ``values`` float32[Q, B] being their similarities to the queries."""
        index = np.broadcast_to(found["index"].astype(np.int64), values.shape)
        score, index = np.concatenate([self.score, values], axis=1), np.concatenate([self.nearest, index], axis=1)
        order = np.argsort(-score, axis=1, kind="stable")[:, :NEAREST]
        self.score, self.nearest = np.take_along_axis(score, order, 1), np.take_along_axis(index, order, 1)
        wanted = {*self.nearest.ravel().tolist(), *self.own.tolist()}
        new = np.flatnonzero(np.isin(found["index"], list(wanted - self.images.keys())))
        taken = _rows(batch["image"], found["row"][new], QUERIES * NEAREST)
        self.images |= dict(zip(found["index"][new].tolist(), taken, strict=True))
        self.images = {i: picture for i, picture in self.images.items() if i in wanted}

    def rows(self) -> list[dict[str, Any]]:
        """Plain data: ``caption``, ``image``, ``rank`` and ``nearest`` of each query."""
        assert self.rank is not None
        names = ("caption", "image", "rank", "nearest")
        nearest = [[i for i in row if i >= 0] for row in self.nearest.tolist()]
        columns = zip(self.captions, self.own.tolist(), self.rank.tolist(), nearest, strict=True)
        return [dict(zip(names, row, strict=True)) for row in columns]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture."""
        rows = [
            (row["caption"], row["rank"], self.images[row["image"]],
             [(self.images[i], i == row["image"]) for i in row["nearest"]])
            for row in self.rows()
        ]  # fmt: skip
        plots.retrieval(rows, path)


class Mistake(NamedTuple):
    """An image that was classified wrongly."""

    label: int
    prediction: int
    confidence: float
    """Of the prediction."""
    image: np.ndarray
    """float32[H, W, 3] as the model sees it."""


@dataclasses.dataclass
class Mistakes:
    """The most confident mistakes, found while batches pass, so that only those images are ever kept.

    Attributes:
      rows: at most :data:`MISTAKES` of them, the most confident first.
    """

    rows: list[Mistake] = dataclasses.field(default_factory=list)

    def update(self, batch: Batch, found: dict[str, np.ndarray]) -> None:
        """Takes in a batch: of its valid rows ``label``, ``prediction``, ``confidence`` and ``row``, which it is."""
        confidence = found["confidence"]
        least = self.rows[-1].confidence if len(self.rows) == MISTAKES else -np.inf
        wrong = np.flatnonzero((found["prediction"] != found["label"]) & (confidence > least))
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
        if not len(wrong):
            return
        images = _rows(batch["image"], found["row"][wrong], MISTAKES)
        columns = (found["label"][wrong].tolist(), found["prediction"][wrong].tolist(), confidence[wrong].tolist())
        new = [Mistake(*row) for row in zip(*columns, images, strict=True)]
        self.rows = sorted([*self.rows, *new], key=lambda row: -row.confidence)[:MISTAKES]

    def draw(self, class_names: Sequence[str], path: str | os.PathLike[str], *, confidence: bool = True) -> None:
        """Writes the picture, or removes an older one where there is nothing to show.

        ``confidence`` says whether those numbers mean something.
        """
        if not self.rows:
            return pathlib.Path(path).unlink(missing_ok=True)
        percent = [f" ({row.confidence:.0%})" if confidence else "" for row in self.rows]
        texts = [
            f"{class_names[row.label]}, taken for {class_names[row.prediction]}{sure}"
            for row, sure in zip(self.rows, percent, strict=True)
        ]
        plots.mistakes(np.stack([row.image for row in self.rows]), texts, path)
