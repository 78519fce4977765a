"""Retrieval between images and captions: recall at 1, 5 and 10 in both directions, as for COCO and Flickr30k."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Count
from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.gather import concatenate, encoder_of, gather
from vit_jax.evals.ranking import rank, similarities
from vit_jax.objectives.base import Apply
from vit_jax.report.contact_sheet import ContactSheet
from vit_jax.types import Batch, Params, UserError

AT = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Embeds every image and every caption once and ranks each against all of the others.

    An image finds its text if ANY of its captions is among the first k; a caption, if its one image is. Ties count as
    the mean over their orders (:class:`~vit_jax.evals.ranking.Ranking`). Results depend on the size of the set: never
    compare 1,000 images to 5,000.

    Attributes:
      data: a source to evaluate on instead of the run's own validation part.
      captions: only the first so many captions of an image; published protocols for COCO and Flickr30k take 5. None
        takes all.
    """

    data: str | None = None
    captions: Count | None = None
    metrics: ClassVar[tuple[str, ...]] = (
        *(f"i2t_r{k}" for k in AT), "i2t_median_rank", *(f"t2i_r{k}" for k in AT), "t2i_median_rank", "mean_r1",
        "images", "captions",
    )  # fmt: skip

    def __call__(self, context: EvalContext) -> RetrievalReport:
        """Reads ``image``, ``text`` int32[B,K,L], ``captions`` int32[B], ``mask`` bool[B] and ``index``.

        Raises:
          UserError: the data has no captions; the run has no texts; nothing to evaluate.
        """
        encoder, sheet, parts = encoder_of(context.info, "retrieval"), None, []
        for batch, found in gather(context, _embedder, self.captions):
            sheet = sheet or ContactSheet.start(batch, found, encoder)
            if sheet:
                sheet.update(batch, found, np.concatenate([v for _, v in similarities(sheet.text, found["image"])]))
            parts.append(found)
        whole = concatenate(parts)
        if not whole["captions"].any():
            raise UserError("there is nothing to retrieve: no image of the data has a caption.")
        assert sheet is not None
        sheet.rank = rank(sheet.text, whole["image"], sheet.own, whole["index"]).rank()
        report = summarise(whole["image"], whole["text"], whole["captions"])
        return dataclasses.replace(report, sheet=sheet)


def _embedder(apply: Apply, most: int | None) -> Any:
    """(params, batch) -> embeddings, captions and index."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        if "text" not in batch:
            raise UserError("the evaluator 'retrieval' needs captions; its data has images alone.")
        first = batch["text"][:, :most]
        # one caption of every image at a time: no more texts at once than in a step of training
        texts = jax.lax.map(lambda t: apply(params, t, train=False, method="embed_text"), jnp.swapaxes(first, 0, 1))
        return {
            "image": apply(params, batch["image"], train=False, method="embed_image").astype(jnp.float32),
            "text": jnp.swapaxes(texts, 0, 1).astype(jnp.float32),
            "captions": batch["captions"],
            "index": batch["index"],
        }

    return run


def summarise(image: np.ndarray, text: np.ndarray, captions: np.ndarray) -> RetrievalReport:
    """From embeddings to the report.

    Args:
      image: float[N, E], unit length.
      text: float[N, K, E], unit length where there is a caption.
      captions: int[N], how many each image has, at least one in all; those beyond K are not there.
    """
    owner, column = np.nonzero(np.arange(text.shape[1]) < captions[:, None])
    described, texts, every = np.flatnonzero(captions), text[owner, column], np.arange(len(image))
    rankings = {"i2t": rank(image[described], texts, described, owner), "t2i": rank(texts, image, owner, every)}
    metrics: dict[str, float] = {}
    for name, ranking in rankings.items():
        metrics |= {f"{name}_r{k}": float(ranking.recall(k).mean()) for k in AT}
        metrics[f"{name}_median_rank"] = float(np.median(ranking.rank()))
    metrics["mean_r1"] = (metrics["i2t_r1"] + metrics["t2i_r1"]) / 2
    metrics |= {"images": float(len(image)), "captions": float(len(texts))}
    broken = int(np.sum(~np.isfinite(image).all(1))), int(np.sum(~np.isfinite(texts).all(1)))
    odd = {"images_without_caption": len(image) - len(described), "nonfinite": sum(broken)}
    metrics |= {k: float(v) for k, v in odd.items() if v}
    arrays = {f"{name}_rank": ranking.rank() for name, ranking in rankings.items()}
    return RetrievalReport(metrics, arrays)


@dataclasses.dataclass(frozen=True)
class RetrievalReport(Report):
    """Metrics ``i2t_r1``, ``i2t_r5``, ``i2t_r10``, ``i2t_median_rank``, the same for ``t2i``, ``mean_r1``, counts.

    ``images_without_caption`` (they are found or not, but search nothing) and ``nonfinite`` (embeddings) appear where
    there are any. ``arrays`` holds ``i2t_rank`` [images with a caption] and ``t2i_rank`` [captions], expected ranks.

    Attributes:
      sheet: some captions with the images nearest to them.
    """

    sheet: ContactSheet | None = None

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Metrics, and what the contact sheet shows, images by their index in the data."""
        return {**super().results(class_names), "retrieval": self.sheet.rows() if self.sheet else []}

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes the contact sheet ``retrieval.png``."""
        if self.sheet:
            self.sheet.draw(folder / "retrieval.png")
