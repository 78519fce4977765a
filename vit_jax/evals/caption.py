"""Captions that a model writes for held-out images, scored against those that people wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Range
from vit_jax.config import Choice
from vit_jax.decoding import DECODERS, Greedy, SearchStrategy, generate, special_ids
from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.caption_metrics import CAPTION_METRICS
from vit_jax.evals.gather import concatenate, encoder_of, gather
from vit_jax.objectives.base import Apply
from vit_jax.types import Batch, Params, UserError

EXAMPLES = 20
"""Images whose captions ``results.json`` shows, evenly spread over the data."""


@dataclasses.dataclass(frozen=True)
class Caption(Evaluator):
    """Writes a caption for every image and compares it with all captions that the image has.

    These are compared as the tokenizer returns them, cut where they exceed its length. CIDEr-D weighs words by how rare
    they are among the images scored, so scores of different sets do not compare.

    Attributes:
      decoder: row of ``decoding.DECODERS``: ``"greedy"``, ``"beam(4)"``, ``"nucleus(0.9)"``.
      limit: number of images, the first of the data, that get a caption; None takes all.
    """

    decoder: Annotated[SearchStrategy, Choice(DECODERS, SearchStrategy)] = Greedy()
    limit: Annotated[int, Range(1, 2**32)] | None = None
    metrics: ClassVar[tuple[str, ...]] = (*CAPTION_METRICS, "caption_images")

    def __call__(self, context: EvalContext) -> CaptionReport:
        """Reads ``image``, ``text`` int32[B,K,L], ``captions`` int32[B], ``mask`` bool[B] and ``index``.

        Raises:
          UserError: the data has no captions; the run has no texts; the tokenizer has no start token; the model has no
            caption decoder; nothing to evaluate.
        """
        encoder = encoder_of(context.info, "caption")
        special_ids(encoder.tokenizer)
        batches = _first(context.batches(), self.limit)
        whole = concatenate(found for _, found in gather(context, _writer, self.decoder, encoder, batches=batches))
        whole = {k: v[: self.limit] for k, v in whole.items()}
        return summarise(whole, encoder)


def _writer(apply: Apply, decoder: SearchStrategy, encoder: Any) -> Any:
    """(params, batch) -> the captions that are written, and those that are there."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        if "text" not in batch:
            raise UserError("the evaluator 'caption' needs captions; its data has images alone.")
        ids: dict[str, Any] = special_ids(encoder.tokenizer)
        image, rows = jax.tree.map(jnp.asarray, batch["image"]), jnp.asarray(batch["index"])
        found = generate(apply, params, image, **ids, length=encoder.length, decoder=decoder, rows=rows)
        return found._asdict() | {k: batch[k] for k in ("text", "captions", "index")}

    return run


def _first(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """Batches until they have ``limit`` rows."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["mask"])
        if limit is not None and seen >= limit:
            return


def summarise(found: dict[str, np.ndarray], encoder: Any) -> CaptionReport:
    """From tokens to the report.

    Args:
      found: ``tokens`` int[N, L], written; ``log_p`` float[N]; ``text`` int[N, K, L], of which image n has
        ``captions[n]``; ``index`` int[N].
      encoder: decodes rows of both.
    """
    described = np.flatnonzero(found["captions"])
    if not len(described):
        raise UserError("there is nothing to compare captions with: no image of the data has one.")
    tokens, log_p = found["tokens"][described], found["log_p"][described]
    written = [encoder.decode(row) for row in tokens]
    references = [[encoder.decode(row) for row in found["text"][i, : found["captions"][i]]] for i in described]
    scores = {name: score(written, references) for name, score in CAPTION_METRICS.items()}
    metrics = {name: score.value for name, score in scores.items()} | {"caption_images": float(len(described))}
    odd = {
        "images_without_caption": len(found["captions"]) - len(described),
        "unended_captions": int(np.sum(~(tokens == encoder.tokenizer.end_id).any(axis=1))),
        "nonfinite_captions": int(np.sum(~np.isfinite(log_p))),
    }
    arrays = {name: score.each for name, score in scores.items()}
    arrays |= {"log_p": log_p.astype(np.float64), "index": found["index"][described].astype(np.int64)}
    chosen = np.linspace(0, len(described) - 1, min(EXAMPLES, len(described))).astype(np.int64)
    examples = [(int(arrays["index"][i]), written[i], references[i], float(scores["cider_d"].each[i])) for i in chosen]
    return CaptionReport(metrics | {k: float(v) for k, v in odd.items() if v}, arrays, examples)


@dataclasses.dataclass(frozen=True)
class CaptionReport(Report):
    """Metrics ``cider_d`` (10 is perfect), ``bleu4``, ``rouge_l``, ``exact_match`` and ``caption_images``.

    Where there are any: ``images_without_caption``, which are not scored; ``unended_captions``, which had no room for
    the end; ``nonfinite_captions``. ``arrays`` holds each metric [N] of single images, ``log_p`` [N], the model's
    log-probability of what it wrote, and ``index`` [N].

    Attributes:
      examples: index of the image, what was written, what people wrote, CIDEr-D.
    """

    examples: Sequence[tuple[int, str, Sequence[str], float]] = ()

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Metrics, and some images' captions."""
        names = ("image", "caption", "references", "cider_d")
        captions = [dict(zip(names, row, strict=True)) for row in self.examples]
        return {**super().results(class_names), "captions": captions}
