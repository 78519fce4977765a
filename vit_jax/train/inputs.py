"""What a model sees: examples framed as in evaluation, and augmented as the first step of training augments them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.augment.patches import pictures
from vit_jax.augment.policy import Norm
from vit_jax.config import change, known, parse
from vit_jax.data.framing import TRAINING
from vit_jax.data.loader import DataConfig, caption_draws, train_rows
from vit_jax.data.permute import make_key, permute
from vit_jax.data.reader import Filled, Mode, Reader
from vit_jax.data.sources import Source
from vit_jax.data.sources.base import Info, Unreadable, known_labels
from vit_jax.report import plots
from vit_jax.train import inherit, rng
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.train.step import views_of
from vit_jax.types import UserError

FILE = "inputs.png"
SHOWN = 24
"""Images on a picture; an even number, as neighbours are mixed with each other."""

READ = 4096
"""Examples that are read to count classes, where what their labels are is not known without."""

Seen = dict[str, tuple[np.ndarray, list[str]]]
"""Title -> images float32[N,S,S,3] in [0, 1] or uint8, and what each of them is called."""


def draw(setup: Setup, step: int, path: pathlib.Path) -> None:
    """Writes a picture of the images that the step from ``step`` on takes from its batch first."""
    c, n = setup.config, len(setup.train)
    rows = train_rows(step, n=n, seed=c.seed, batch_size=c.batch_size)[:SHOWN]
    draws = caption_draws(step, seed=c.seed, batch_size=c.batch_size)[:SHOWN]
    batch, _ = read(setup.train, c.data, rows, "train", draws)
    plots.contact_sheet(augmented(c, setup.train.info, batch, step), path)


def preview(path: str, raw: Mapping[str, Any] | None = None) -> tuple[Source, Seen, list[str]]:
    """Some examples of the data at ``path``, evenly drawn.

    Args:
      path: the source.
      raw: plain configuration of a run, whose framing, text and augmentation are taken, and not its data; None shows
        how data alone is framed.

    Returns:
      All of the source, the pictures, and a line for everything that is to be said of it: what was left out, and which
      of the examples that were drawn are unreadable.

    Raises:
      UserError: nothing can be read.
    """
    c: TrainConfig | None = None
    data = DataConfig(path)
    if raw is not None:
        whole = change(raw, {"data.path": path, "data.val": path}.items())  # nothing is held out
        c = inherit.with_tokenizer(parse(TrainConfig, inherit.resolved(whole)))
        data = c.data
    data = dataclasses.replace(data, val=path, on_error="skip")
    with known(c.imports if c else ()):
        source = data.open("train")
    rows = permute(np.arange(min(SHOWN, len(source))), len(source), make_key(0))
    batch, found = read(source, data, rows, "eval")
    unreadable = list(found.unreadable.values())
    if not batch["mask"].any():
        raise UserError(f"none of {len(rows)} examples can be read; for one, {unreadable[0]}.")
    rows, batch = rows[batch["mask"]], {k: v[batch["mask"]] for k, v in batch.items()}
    if c is None:
        called = texts(source.info, batch)
        if not source.info.class_names:
            called = [source[int(i)].get("captions", ("",))[0] for i in rows]
        sections = {f"as in evaluation, {data.canvas} px": (batch["image"], called)}
    else:
        sections = framed(c, source.info, batch) | augmented(c, source.info, read(source, data, rows, "train")[0])
    return source, sections, [*source.info.notes, *unreadable]


def counts(source: Source) -> tuple[dict[str, int], int]:
    """Class -> examples, and how many examples that was counted in: all, or as many as can be read in a moment."""
    if not source.info.class_names:
        return {}, len(source)
    labels = known_labels(source)
    if labels is None:
        chosen = np.unique(np.linspace(0, len(source) - 1, READ).astype(np.int64))
        labels = np.array([label for i in chosen if (label := _label(source, int(i))) is not None], np.int64)
    number = np.bincount(labels, minlength=source.info.num_classes)
    return dict(zip(source.info.class_names, number.tolist(), strict=True)), len(labels)


def _label(source: Source, i: int) -> int | None:
    try:
        return source[i]["label"]
    except Unreadable:
        return None


def read(
    source: Source, data: DataConfig, rows: np.ndarray, mode: Mode, draws: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], Filled]:
    """The host's batch of the examples ``rows``: framed as ``data`` says, or squashed as in training."""
    frame = TRAINING if mode == "train" else data.frame
    reader = Reader(source, data.canvas, frame, mode, data.on_error, data.max_pixels)
    batch = reader.empty(rows)
    return batch, reader.fill(batch, slice(None), draws)


def framed(c: TrainConfig, info: Info, batch: Any) -> Seen:
    """A host's batch as the model sees it in evaluation."""
    images = pictures(jax.jit(_plain(c).augment.eval_fn())(batch)["image"])
    return {f"as in evaluation, {c.augment.size} px": (images, texts(info, batch))}


def augmented(c: TrainConfig, info: Info, batch: Any, step: int = 0) -> Seen:
    """A host's batch as the step from ``step`` on augments it: a section for each view that the objective takes."""
    augment, views = _plain(c).augment.train_fn(info.num_classes), c.objective.views
    out = jax.jit(functools.partial(views_of, augment, views))(rng.stream(c.seed, "augment", step), batch)
    called = texts(info, {**batch, "label": np.asarray(out["label"])})
    images = (out["image"],) if views == 1 else out["image"]
    title = f"as in training, step {step + 1}, {c.augment.size} px"
    titles = [title + (f", view {i}" if views > 1 else "") for i in range(1, views + 1)]
    return {title: (pictures(x), called) for title, x in zip(titles, images, strict=True)}


def _plain(c: TrainConfig) -> TrainConfig:
    """Without normalisation: pixels stay in [0, 1]."""
    return dataclasses.replace(c, augment=dataclasses.replace(c.augment, norm=Norm((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))))


def texts(info: Info, batch: Any) -> list[str]:
    """What the examples of a batch are called: their caption as far as its tokens go, or their classes."""
    if info.encoder is not None:
        rows = batch["text"] if batch["text"].ndim == 2 else batch["text"][:, 0]
        return [info.encoder.decode(row) for row in rows]
    return [_called(info, label) for label in batch["label"]]


def _called(info: Info, label: np.ndarray) -> str:
    if not info.class_names:
        return ""
    if not label.ndim:
        return info.class_names[int(label)]
    shares = {info.class_names[k]: label[k] for k in np.argsort(-label, kind="stable")[:2] if label[k] > 0.005}
    return ", ".join(name if share > 0.995 else f"{name} {share:.0%}" for name, share in shares.items())
