"""Probes: how far do frozen features carry? A linear classifier or nearest neighbours on top of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Count, Positive, Range, Seed
from vit_jax.evals import linear
from vit_jax.evals.base import EvalContext, Evaluator, Split
from vit_jax.evals.classify import NamedReport, scores, summarise
from vit_jax.evals.gather import concatenate, gather
from vit_jax.evals.ranking import CHUNK, similarities, unit
from vit_jax.objectives.base import Apply
from vit_jax.report.contact_sheet import MISTAKES, Mistakes
from vit_jax.types import Batch, Params, UserError

Method = Literal["features", "embed_image"]
Folds = Annotated[int, Range(2, 1000)]


def neighbour_votes(
    train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray, num_classes: int, *,
    k: int = 20, temperature: float = 0.07, chunk: int = CHUNK,
) -> np.ndarray:  # fmt: skip
    """Votes of the k nearest training examples, each worth exp(cosine / temperature) (DINO: Caron et al. 2021, 4.1).

    Where several examples share the k-th place, each votes with the fraction of them that has room: neither their order
    nor how the data is sorted matters.

    Args:
      train_features: float[M, D].
      train_labels: int[M].
      features: float[N, D], finite.
      num_classes: C.
      k: neighbours; all M where there are fewer.
      temperature: small ones let the nearest decide.
      chunk: similarities held at a time.

    Returns:
      float64[N, C], rows adding up to 1.

    Raises:
      UserError: no training features, or some that are not finite.
    """
    if not len(train_features) or not np.isfinite(train_features).all():
        raise UserError(f"there are no neighbours: {len(train_features)} training examples, or some not finite.")
    k, votes = min(k, len(train_features)), np.zeros((len(features), num_classes))
    for block, values in similarities(unit(features), unit(train_features), chunk=chunk):
        last = np.partition(values, -k, axis=1)[:, -k, None]
        nearer, tied = values > last, values == last
        room = (k - nearer.sum(1)) / tied.sum(1)
        row, column = np.nonzero(nearer | tied)
        share = np.where(tied[row, column], room[row], 1.0)
        best = values.max(axis=1).astype(np.float64)
        weight = share * np.exp((values[row, column] - best[row]) / temperature)
        np.add.at(votes[block], (row, train_labels[column]), weight)
    return votes / votes.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Probe(Evaluator):
    """What the probes share; a subclass gives its name and :meth:`predict`.

    Attributes:
      data: a source instead of the run's own; its training part is fitted to, its validation part scored.
      folds: take no training part: the validation part is cut into so many folds, every class spread over them, and
        each fold is scored by a probe that was fitted to the others; None fits to the training part.
      shots: fit to so many examples of each class; None takes all.
      seed: random seed of the choice of shots and of the examples held out.
      method: the model's method that gives the features: ``"features"`` (pooled, before any head or projection) or
        ``"embed_image"`` (of an image-text model the embedding, of others those features).
    """

    data: str | None = None
    folds: Folds | None = None
    shots: Count | None = None
    seed: Seed = 0
    method: Method = "embed_image"
    kind: ClassVar[str]
    """First part of the names of its metrics."""

    @property
    def splits(self) -> tuple[Split, ...]:  # type: ignore[override]
        """The parts of the data that it reads."""
        return ("train", "val") if self.folds is None else ("val",)

    def __call__(self, context: EvalContext) -> NamedReport:
        """Reads ``image``, ``label``, ``index`` and ``mask``.

        Raises:
          UserError: the data has no classes; too few examples for ``shots``; nothing to fit to or to evaluate.
        """
        classes = context.info.num_classes
        if classes < 2:
            raise UserError(
                f"the evaluator {self.kind!r} needs data with classes; set its field data, or leave it out."
            )
        if self.folds is not None:
            held = self._extracted(context, "val")
            report = self.cross_validate(held["features"], held["label"], classes, self.folds)
        else:
            train, held = self._extracted(context, "train"), self._extracted(context, "val")
            fitted = self._chosen(train["features"], train["label"])
            report = self.fit_and_score(*fitted, held["features"], held["label"], classes)
        mistakes = self._mistakes(context, report.examples, held["index"])
        table = dataclasses.replace(report.table, mistakes=mistakes)
        return dataclasses.replace(report, table=table, class_names=tuple(context.info.class_names))

    def _extracted(self, context: EvalContext, split: Split) -> dict[str, np.ndarray]:
        """``features`` float32[N, D], ``label`` and ``index`` of a part of the data; other probes may have them."""
        key = (split, self.method, context.transform)
        if key not in context.found:
            parts = gather(context, _extractor, self.method, batches=context.batches(split))
            what = "fit to" if split == "train" else "evaluate"
            context.found[key] = concatenate((found for _, found in parts), what)
        return context.found[key]

    def _mistakes(self, context: EvalContext, examples: Mapping[str, np.ndarray], index: np.ndarray) -> Mistakes:
        """The most confident ones, whose images are read once more."""
        wrong = np.flatnonzero(examples["prediction"] != examples["label"])
        chosen = wrong[np.argsort(-examples["confidence"][wrong], kind="stable")][:MISTAKES]
        worst, mistakes = {k: v[chosen] for k, v in examples.items()}, Mistakes()
        for i, batch in enumerate(context.batches("val", index[chosen]) if len(chosen) else ()):
            part = {k: v[i * (size := len(batch["mask"])) :][:size] for k, v in worst.items()}
            mistakes.update(batch, {**part, "row": np.arange(len(part["label"]))})
        return mistakes

    def _chosen(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those that are fitted to."""
        chosen = slice(None) if self.shots is None else linear.few_shot(labels, self.shots, self.seed)
        return features[chosen], labels[chosen]

    def cross_validate(self, features: np.ndarray, labels: np.ndarray, num_classes: int, folds: int) -> NamedReport:
        """Scores each fold by a probe that was fitted to the others; a pure function, otherwise as
        :meth:`fit_and_score`. Further metrics, such as the penalty, are means over the folds."""
        place, _ = linear.places(labels, self.seed)
        fold = np.empty(len(labels), np.int64)
        fold[np.lexsort((place, labels))] = np.arange(len(labels)) % folds
        found, whole = np.zeros((len(labels), num_classes)), np.isfinite(features).all(axis=1)
        extras = collections.defaultdict[str, list[float]](list)
        for here in (fold == i for i in range(folds)):
            if here.any():
                fitted = self._chosen(features[~here & whole], labels[~here & whole])
                found[here], extra = self.predict(*fitted, np.where(whole[here, None], features[here], 0), num_classes)
                for name, value in extra.items():
                    extras[name].append(value)
        means = {name: float(np.mean(values)) for name, values in extras.items()}
        return self._report(np.where(whole[:, None], found, np.nan), labels, num_classes, means)

    def fit_and_score(
        self, train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray, labels: np.ndarray,
        num_classes: int,
    ) -> NamedReport:  # fmt: skip
        """Fits to one set of features and scores another; a pure function.

        Args:
          train_features: float[M, D].
          train_labels: int[M].
          features: float[N, D]; a row that is not finite counts as wrong, and in ``nonfinite``.
          labels: int[N].
          num_classes: C.

        Returns:
          Metrics, and the arrays of the table without its bins, all with the probe's name in front; classes have no
          names yet. Of equal scores the lower class is taken.
        """
        whole = np.isfinite(features).all(axis=1, keepdims=True)
        found, extra = self.predict(train_features, train_labels, np.where(whole, features, 0), num_classes)
        return self._report(np.where(whole, found, np.nan), labels, num_classes, extra)

    def _report(self, found: np.ndarray, labels: np.ndarray, num_classes: int, extra: dict[str, float]) -> NamedReport:
        assert found.shape == (len(labels), num_classes), (found.shape, len(labels), num_classes)
        examples = jax.device_get(scores(found.astype(np.float32), labels.astype(np.int32), "softmax"))
        table = summarise(examples, num_classes, "softmax")
        arrays = {f"{self.kind}/{k}": v for k, v in table.arrays.items() if not k.startswith("bin_")}
        return NamedReport.of(self.kind, table, extra, arrays, examples=examples)

    def predict(
        self, train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray, num_classes: int
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Scores of the classes, float[N, C], and further metrics; ``features`` are finite."""
        raise NotImplementedError


def _extractor(apply: Apply, method: Method) -> Any:
    """(params, batch) -> features float32[B, D], label and index."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        found = apply(params, batch["image"], train=False, method=method)
        features = found if method == "embed_image" else found.pooled
        return {"features": features.astype(jnp.float32), "label": batch["label"], "index": batch["index"]}

    return run


@dataclasses.dataclass(frozen=True)
class LinearProbe(Probe):
    """A linear classifier on frozen features.

    Attributes:
      head: ``"logistic"`` (Radford et al. 2021, A.3) or ``"ridge"``, in closed form (Dosovitskiy et al. 2021, section
        4.1, for few shots).
    """

    head: Literal["logistic", "ridge"] = "logistic"
    kind: ClassVar[str] = "linear_probe"
    metrics: ClassVar[tuple[str, ...]] = (
        "linear_probe/accuracy", "linear_probe/top5", "linear_probe/mean_class_accuracy", "linear_probe/examples",
        "linear_probe/l2",
    )  # fmt: skip

    def predict(
        self, train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray, num_classes: int
    ) -> tuple[np.ndarray, dict[str, float]]:
        """As :meth:`Probe.predict`; further the penalty that was chosen, ``unconverged`` if the fit was cut short."""
        path = linear.HEADS[self.head]
        classifier, l2 = linear.fit(train_features, train_labels, num_classes, path, seed=self.seed)
        return classifier(features), {"l2": l2} | ({} if classifier.converged else {"unconverged": 1.0})


@dataclasses.dataclass(frozen=True)
class KNN(Probe):
    """The classes of the nearest training examples (see :func:`neighbour_votes`).

    Attributes:
      k: neighbours that vote.
      temperature: divides the similarities before they become the neighbours' weights; smaller favours the nearest.
    """

    k: Count = 20
    temperature: Positive = 0.07
    kind: ClassVar[str] = "knn"
    metrics: ClassVar[tuple[str, ...]] = ("knn/accuracy", "knn/top5", "knn/mean_class_accuracy", "knn/examples")

    def predict(
        self, train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray, num_classes: int
    ) -> tuple[np.ndarray, dict[str, float]]:
        """As :meth:`Probe.predict`."""
        return neighbour_votes(
            train_features, train_labels, features, num_classes, k=self.k, temperature=self.temperature
        ), {}
