"""Our own format: a folder like that of a run, so that ``predict``, ``train`` and ``evaluate`` take it as it is."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax import checkpoint, models
from vit_jax.augment import Augment
from vit_jax.config import Choice, parse
from vit_jax.convert.base import Preprocess, Pretrained, describe, numbered
from vit_jax.convert.tensors import Tensor
from vit_jax.objectives import OBJECTIVES
from vit_jax.types import UserError

NAME = "vit_jax"


def matches(path: pathlib.Path) -> bool:
    """Whether ``path`` is a workdir, its ``checkpoints`` or one checkpoint."""
    return path.is_dir() and bool(
        (path / checkpoint.FOLDER).is_dir() or (path / "params").is_dir() or checkpoint.steps(path)
    )


def load(path: pathlib.Path) -> Pretrained:
    """The newest readable checkpoint at ``path``: its moving average where there is one.

    Raises:
      UserError: none can be read.
    """
    tree, meta, folder = checkpoint.load_params(path)
    raw = meta["config"]
    model = parse(Annotated[Any, Choice(models.NAMES)], raw["model"], "model")
    augment = parse(Augment, raw["augment"], "augment")
    objective = parse(Annotated[Any, Choice(OBJECTIVES)], raw.get("objective", "classify"), "objective")
    canvas = raw["data"].get("canvas", 256)
    names = tuple(meta["class_names"])
    return Pretrained(
        model.clone(num_classes=len(names)),
        leaves(tree),
        Preprocess.of(augment, canvas),
        names,
        objective.link,
        meta.get("resize", "bilinear"),
        str(folder),
        config=raw,
        provenance=meta.get("provenance", {}),
    )


def leaves(tree: Any) -> dict[str, Tensor]:
    """Parameters on the device as leaves by path, fetched when they are read."""

    def tensor(leaf: jax.Array) -> Tensor:
        return Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(np.asarray, leaf))

    return {path: tensor(leaf) for path, leaf in checkpoint.flat(tree).items()}


def run_config(pretrained: Pretrained) -> dict[str, Any]:
    """The configuration of its run, or one with its model and preprocessing that only lacks the data."""
    if pretrained.config is not None:
        return dict(pretrained.config)
    fields = {k: v for k, v in describe(pretrained.model).items() if k != "num_classes"}
    p = pretrained.preprocess
    raw = {
        "model": fields,
        "data": {"path": "", "canvas": p.host_canvas},
        "augment": p.augment(),
        "objective": {"name": "classify", "link": pretrained.link},
    }
    return json.loads(json.dumps(raw))


def save(pretrained: Pretrained, folder: pathlib.Path) -> None:
    """Writes ``config.json`` and ``checkpoints/0`` into ``folder``.

    Raises:
      UserError: it cannot be written.
    """
    raw = run_config(pretrained)
    tree: dict[str, Any] = pretrained.tree(jnp.asarray)
    provenance = {"vit_jax": vit_jax.__version__, "converted": pretrained.source, "notes": list(pretrained.notes)}
    names = list(numbered(pretrained.class_names, pretrained.model.num_classes))
    meta = {"config": raw, "class_names": names, "provenance": provenance, "resize": pretrained.resize}
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    writer = checkpoint.Checkpoints(folder, buffer=max(2**26, 2 * largest))
    writer.save(0, {"params": tree}, meta, {})
    writer.close()
    try:
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"{folder} cannot be written ({e.strerror}); choose another place.") from e
