"""Classification of held-out images: top-1, top-5, per class, loss, calibration, confusions."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Range
from vit_jax.data.classes import mismatch
from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.calibration import Reliability, reliability
from vit_jax.evals.gather import concatenate, gather
from vit_jax.losses import CROSS_ENTROPIES, PROBABILITIES
from vit_jax.models import ImageModel
from vit_jax.objectives.base import Apply
from vit_jax.report import plots
from vit_jax.report.contact_sheet import Mistakes
from vit_jax.types import Array, Batch, OutputActivation, Params, UserError

MAX_CONFUSION_CLASSES = 4096
"""With more classes the dense confusion matrix (128 MiB here) is left out of the report."""


@dataclasses.dataclass(frozen=True)
class Classify(Evaluator):
    """Scores every image once.

    One jitted function runs the model and reduces its logits to five numbers an example; sums are made on the host in
    float64 and int64, in the order of the examples, so that neither the batch size nor the number of devices matters.

    Attributes:
      bins: number of confidence bins of the calibration error.
    """

    bins: Annotated[int, Range(1, 1000)] = 15
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "top5", "mean_class_accuracy", "loss", "ece", "examples")

    def __call__(self, context: EvalContext) -> ClassificationReport:
        """Reads ``image``, ``label`` int32[B] and ``mask`` bool[B] of each batch.

        Raises:
          UserError: no batch holds a valid example; the model is none of classes, or of others than the data's.
        """
        activation, classes = context.objective.output_activation, context.info.num_classes
        if activation is None or not isinstance(context.model, ImageModel):
            model, objective = type(context.model).__name__, type(context.objective).__name__
            raise UserError(
                f"the evaluator 'classify' scores classifiers, and {model} trained with {objective} is none; leave it "
                "out, or take another evaluator such as 'linear_probe' or 'zero_shot'."
            )
        if differs := mismatch(context.class_names, context.info.class_names):
            raise UserError(
                f"the model {differs}; give 'classify' data with the classes of training, or take an evaluator that "
                "does not use the head, such as 'linear_probe'."
            )
        whole, mistakes = scored(gather(context, _scorer, activation, classes))
        return dataclasses.replace(summarise(whole, classes, activation, bins=self.bins), mistakes=mistakes)


def scored(batches: Iterable[tuple[Batch, dict[str, np.ndarray]]]) -> tuple[dict[str, np.ndarray], Mistakes]:
    """The :func:`scores` of all batches, one after the other, and the most confident mistakes."""
    parts, mistakes = [], Mistakes()
    for batch, found in batches:
        parts.append(found)
        mistakes.update(batch, found)
    return concatenate(parts), mistakes


@functools.partial(jax.jit, static_argnums=2)
def scores(logits: Array, labels: Array, output_activation: OutputActivation) -> dict[str, jax.Array]:
    """What :func:`summarise` needs of each example.

    Args:
      logits: float[B,C].
      labels: int32[B].
      output_activation: how logits become probabilities.

    Returns:
      ``label`` and ``prediction`` int32[B]; ``rank`` int32[B], how many classes come before the true one (C if a logit
      is NaN); ``confidence`` (the largest probability) and ``loss`` float32[B].
    """
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    classes, label = jnp.arange(logits.shape[1], dtype=labels.dtype)[None], labels[:, None]
    true = jnp.take_along_axis(logits, label, axis=1)
    before = (logits > true) | ((logits == true) & (classes < label))  # ties go to the lower class, as in argmax
    broken = jnp.isnan(logits).any(axis=1)
    return {
        "label": labels,
        "prediction": jnp.argmax(logits, axis=1).astype(jnp.int32),
        "rank": jnp.where(broken, logits.shape[1], before.sum(axis=1, dtype=jnp.int32)),
        "confidence": PROBABILITIES[output_activation](logits).max(axis=1),
        "loss": CROSS_ENTROPIES[output_activation](logits, labels),
    }


def _scorer(apply: Apply, output_activation: OutputActivation, num_classes: int) -> Any:
    """(params, batch) -> scores."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        logits = apply(params, batch["image"], train=False)
        assert logits.shape == (len(batch["label"]), num_classes), (logits.shape, num_classes)
        return scores(logits, batch["label"], output_activation)

    return run


def summarise(
    examples: Mapping[str, Array], num_classes: int, output_activation: OutputActivation, *, bins: int = 15
) -> ClassificationReport:
    """From the :func:`scores` of all N examples to the report.

    A row whose logits hold NaN counts as wrong, makes ``loss`` NaN and is counted in ``nonfinite``.
    """
    label, rank = np.asarray(examples["label"], np.int64), np.asarray(examples["rank"])
    assert label.min() >= 0 and label.max() < num_classes, (label.min(), label.max(), num_classes)
    correct = rank == 0
    counts = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[correct], minlength=num_classes)
    per_class = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    diagram = reliability(np.nan_to_num(examples["confidence"]), correct, bins)
    metrics = {
        "accuracy": float(np.mean(correct)),
        "top5": float(np.mean(rank < min(5, num_classes))),
        "mean_class_accuracy": float(np.nanmean(per_class)),
        "loss": float(np.mean(examples["loss"], dtype=np.float64)),
        "ece": diagram.ece(),
        "examples": float(len(label)),
    }
    broken = int(np.sum(rank == num_classes))
    arrays = {"class_examples": counts, "class_correct": right, "per_class_accuracy": per_class}
    if num_classes <= MAX_CONFUSION_CLASSES:
        pairs = np.bincount(label * num_classes + examples["prediction"], minlength=num_classes**2)
        arrays["confusion"] = pairs.reshape(num_classes, num_classes)
    arrays |= {f"bin_{k}": v for k, v in diagram._asdict().items()}
    return ClassificationReport(metrics | ({"nonfinite": float(broken)} if broken else {}), arrays, output_activation)


@dataclasses.dataclass(frozen=True)
class ClassificationReport(Report):
    """Metrics ``accuracy``, ``top5`` (top min(5, C)), ``mean_class_accuracy``, ``loss``, ``ece``, ``examples``.

    ``arrays`` holds ``class_examples``, ``class_correct``, ``per_class_accuracy`` [C] (NaN without examples),
    ``confusion`` int64[C,C] (rows: truth, columns: prediction; absent above :data:`MAX_CONFUSION_CLASSES`),
    ``bin_edges`` [M+1], ``bin_examples``, ``bin_confidence`` and ``bin_accuracy`` [M].

    Attributes:
      output_activation: what made probabilities of the logits for ``loss`` and ``ece``: "softmax" or "sigmoid".
      mistakes: the images that were most confidently classified wrongly.
    """

    output_activation: OutputActivation = "softmax"
    mistakes: Mistakes = dataclasses.field(default_factory=Mistakes)

    def reliability(self) -> Reliability:
        """The reliability diagram."""
        return Reliability(*(self.arrays[f"bin_{k}"] for k in Reliability._fields))

    def confusions(self, limit: int = 20) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: (true class, predicted class, count), most frequent first."""
        wrong = self.arrays["confusion"] * (1 - np.eye(len(self.arrays["confusion"]), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = np.stack(np.unravel_index(order, wrong.shape), axis=1)
        return [(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Metrics, output activation, per-class table, most frequent confusions (or None) and reliability bins."""
        a, bins, confusions = self.arrays, self.reliability(), None
        if "confusion" in a:
            confusions = [(class_names[t], class_names[p], n) for t, p, n in self.confusions()]
        classes = (class_names, a["class_examples"], a["class_correct"], a["per_class_accuracy"])
        return {
            **super().results(class_names),
            "output_activation": self.output_activation,
            "per_class": _records(("class", "examples", "correct", "accuracy"), zip(*classes, strict=True)),
            "confusions": confusions and _records(("true", "predicted", "count"), confusions),
            "reliability": _records(
                ("above", "to", "examples", "confidence", "accuracy"),
                zip(bins.edges[:-1], bins.edges[1:], *bins[1:], strict=True),
            ),
        }

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes ``reliability.png``; of a matrix ``confusion.png``, of mistakes ``mistakes.png``."""
        self.mistakes.draw(class_names, folder / "mistakes.png")
        plots.reliability(self.reliability(), folder / "reliability.png")
        if "confusion" in self.arrays:
            plots.confusion(self.arrays["confusion"], class_names, folder / "confusion.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedReport(Report):
    """Metrics ``NAME/accuracy``, ``top5`` (top min(5, C)), ``mean_class_accuracy`` and ``examples`` without a head.

    ``NAME/nonfinite`` (images) appears where there are any.

    Attributes:
      name: of the evaluator, in front of metrics, tables and pictures.
      table: all of it per class; its loss and bins are of a softmax over scores that are none of logits.
      class_names: of the classes of the data that was classified, which need not be those of training.
      examples: the :func:`scores` of each example, where they are kept.
    """

    name: str
    table: ClassificationReport
    class_names: tuple[str, ...] = ()
    examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        table: ClassificationReport,
        extra: Mapping[str, float],
        arrays: dict[str, np.ndarray],
        **more: Any,
    ) -> NamedReport:
        """Of ``table`` and ``extra`` metrics, without those that mean nothing; ``more`` are further attributes."""
        metrics = {k: v for k, v in table.metrics.items() if k not in ("loss", "ece")} | dict(extra)
        return cls({f"{name}/{k}": v for k, v in metrics.items()}, arrays, name=name, table=table, **more)

    def results(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Metrics, and under the name the per-class table and the most frequent confusions."""
        found = self.table.results(self.class_names)
        return {**super().results(class_names), self.name: {k: found[k] for k in ("per_class", "confusions")}}

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes ``NAME_confusion.png``, where there is a matrix, and ``NAME_mistakes.png``, if any."""
        self.table.mistakes.draw(self.class_names, folder / f"{self.name}_mistakes.png", confidence=False)
        if "confusion" in self.table.arrays:
            plots.confusion(self.table.arrays["confusion"], self.class_names, folder / f"{self.name}_confusion.png")


def _records(keys: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(keys, row, strict=True)) for row in rows]
