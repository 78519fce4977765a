"""Any weights on labelled images: evaluators without a run."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import config, hosts, sharding
from vit_jax.augment import Augment
from vit_jax.config import Imports
from vit_jax.convert import Pretrained, read, run_folder
from vit_jax.convert.preprocess import Preprocess
from vit_jax.create import resized
from vit_jax.data.classes import mismatch, spelled
from vit_jax.data.image import MAX_PIXELS
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import Source, open_parts
from vit_jax.data.sources.base import Info, Subset, align
from vit_jax.data.sources.captioned import WithTokenizer
from vit_jax.evals import EVALUATORS, Classify, EvalContext, Evaluator, Report, Retrieval, ZeroShot, combine
from vit_jax.evals.base import Split, Transform, prefixed, reported
from vit_jax.evals.probes import Probe
from vit_jax.models import ImageTextModel, ModelFn
from vit_jax.objectives import OBJECTIVES, Objective
from vit_jax.sharding import MeshConfig, make_mesh
from vit_jax.types import Batch, UsageError, UserError

log = logging.getLogger(__name__)

FOLDS = 5
"""Of a probe on data that has no training part of its own."""


def weights(place: Pretrained | str | os.PathLike[str], size: int | None = None, imports: Imports = ()) -> Pretrained:
    """What lies at ``place``, or the model itself, for images of ``size`` pixels; notes are warnings.

    ``imports`` are for a run whose own ones are not to be had or not to be trusted.

    Raises:
      UserError: it cannot be read; the model takes no images of that size.
    """
    if size is not None and size < 1:
        raise UsageError(f"size={size} is no side of an image; give a number of pixels such as 224.")
    if isinstance(place, Pretrained):
        return place if size in (None, place.preprocess.size) else resized(place.stored(), size)
    with config.known(imports), read.load(os.fspath(place)) as stored:
        found = resized(stored, size)
    for note in found.notes:
        log.warning("%s: %s", found.source, note)
    return found


def score(
    found: Pretrained,
    data: Source | str,
    evaluators: Sequence[Evaluator | str] = (),
    *,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    output: str | os.PathLike[str] | None = None,
    imports: Imports = (),
) -> Report:
    """What evaluators find of a model on the validation part of ``data``, or on all of it where it has no such part.

    Probes are fitted to the training part; without one each example is scored by a probe that was fitted to others,
    in :data:`FOLDS` folds.

    Args:
      found: the model.
      data: a source with classes, or with captions for the evaluators that read them.
      evaluators: rows of ``EVALUATORS``, as in a configuration; by default ``classify`` of a classifier, and of
        an image-text model ``zero_shot``, on captions without classes ``retrieval``.
      batch_size: images at a time, over all devices.
      max_pixels: an image with more is unreadable, but for a JPEG. What cannot be read is left out and counted in the
        metric ``unreadable``; where it is more than a hundredth, that is an error.
      output: folder for ``results.json`` and pictures; None for none.
      imports: by whose classes evaluators and sources may be named besides those that the run itself imports.

    Raises:
      UserError: an unknown evaluator; one that does not suit the model or the data; no such data.
    """
    with config.known((*imports, *found.imports)):
        report, classes = _scored(found, data, evaluators, batch_size, max_pixels)
    if output is not None:
        report.save(output, classes)
    return report


def _scored(
    found: Pretrained, data: Source | str, evaluators: Sequence[Evaluator | str], batch_size: int, max_pixels: int
) -> tuple[Report, tuple[str, ...]]:
    """The report, and the classes that it tells of."""
    kind = tuple[Annotated[Any, config.Choice(EVALUATORS, Evaluator)], ...]
    rows = tuple(row for given in evaluators for row in config.parse(kind, given, "evaluators"))
    reported(rows)
    parts = _parts(found, data)
    rows = rows or (_default(found, parts["val"].info),)
    trained_with = run_folder.run_config(found).get("objective", "classify")
    objective = config.parse(Annotated[Any, config.Choice(OBJECTIVES, Objective)], trained_with, "objective")
    mesh, programs = make_mesh(MeshConfig()), dict[Any, Any]()
    params, apply = _everywhere(found.params, mesh), ModelFn(found.model, _everywhere(found.variables, mesh))
    kept = collections.defaultdict[str | None, dict[Any, Any]](dict)
    reports: list[Report] = []
    classes: tuple[str, ...] = ()
    for row in rows:
        sources = parts if row.data is None else _parts(found, row.data)
        row = _suited(row, found, sources)
        if isinstance(row, Classify):
            sources = {split: _in_classes_of(found, source) for split, source in sources.items()}
        info = dataclasses.replace(sources["val"].info, encoder=found.encoder)
        reader = _Reader(found.preprocess, mesh, sources, batch_size, max_pixels)
        given = (found.model, apply, params, objective, info, found.class_names, reader, programs, kept[row.data])
        with jax.set_mesh(mesh):
            report = row(EvalContext(*given))
        if skipped := sum(map(int, hosts.share("the unreadable examples", str(reader.skipped)))):
            report.metrics["unreadable"] = float(skipped)
        reports.append(prefixed(report, row.prefix))
        classes = info.class_names if isinstance(row, Classify) or not classes else classes
    return dataclasses.replace(combine(reports), checkpoint=found.source), classes


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """``tree``, whole on each device of ``mesh``."""
    whole = NamedSharding(mesh, PartitionSpec())
    return sharding.place(tree, jax.tree.map(lambda _: whole, tree))


def _default(found: Pretrained, info: Info) -> Evaluator:
    """What is asked of a model where nothing else is: what it can tell of such data."""
    if not isinstance(found.model, ImageTextModel):
        return Classify()
    return Retrieval() if info.captions and not info.class_names else ZeroShot()


def _parts(found: Pretrained, data: Source | str) -> dict[str, Source]:
    """The training part of ``data``, if it has its own, and what is scored; with captions as tokens."""
    train, val = open_parts(data)
    sources = {"val": val} if train is None else {"train": train, "val": val}
    if found.encoder is None:
        return sources
    return {k: WithTokenizer(s, found.encoder) if s.info.captions else s for k, s in sources.items()}


def _suited(row: Evaluator, found: Pretrained, sources: Mapping[str, Source]) -> Evaluator:
    """``row`` for this model and data: a probe in folds where there is nothing else to fit to."""
    if isinstance(row, Classify) and not found.class_names:
        raise UserError(
            f"{found.source} has no head, so 'classify' has nothing to score; take 'linear_probe' or 'knn', or "
            "'zero_shot' of an image-text model."
        )
    if isinstance(row, Probe) and row.folds is None and "train" not in sources:
        return dataclasses.replace(row, folds=FOLDS)
    return row


def _in_classes_of(found: Pretrained, source: Source) -> Source:
    """``source`` with its labels counted in the model's classes, where it has no others; else as it is."""
    names = source.info.class_names
    if mismatch(found.class_names, names) and names and set(spelled(names)) <= set(spelled(found.class_names)):
        return align(source, found.class_names, "the data")
    return source


class _Reader:
    """``(split, transform, rows) -> batches`` ready for the model, spread over ``mesh``; counts what was left out."""

    def __init__(
        self, p: Preprocess, mesh: Mesh, sources: Mapping[str, Source], batch_size: int, max_pixels: int
    ) -> None:
        self._p, self._mesh, self._sources = p, mesh, sources
        self._batch_size, self._max_pixels = batch_size, max_pixels
        self._prepare = jax.jit(config.parse(Augment, p.augment()).eval_fn())
        self.skipped = 0

    def __call__(self, split: Split, transform: Transform | None, rows: np.ndarray | None = None) -> Iterator[Batch]:
        source, p = self._sources[split], self._p
        transform = transform and jax.jit(transform)
        size = -(-min(self._batch_size, len(source)) // self._mesh.size) * self._mesh.size
        batches = eval_batches(
            source if rows is None else Subset(source, rows), batch_size=size, canvas=p.host_canvas,
            frame=p.host_frame, on_error="skip", max_pixels=self._max_pixels,
            places=sharding.host_rows(self._mesh, size),
        )  # fmt: skip
        try:
            for read_ in batches:
                batch = sharding.put(read_, self._mesh)
                yield self._prepare(batch if transform is None else {**batch, "image": transform(batch["image"])})
        finally:
            batches.close()
            self.skipped += batches.skipped
