"""Trained ViTs of several widths as one stitchable network (SN-Net, Pan et al. 2023, arXiv:2302.06586)."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.convert import Pretrained, read
from vit_jax.data.sources import Source, open_source
from vit_jax.models import Stitched, ViT
from vit_jax.models.composed.stitched import ANCHORS, check_anchor
from vit_jax.types import Array, Params, UserError

BATCH = 16
"""Images that go through an anchor together."""


def stitch(
    anchors: Sequence[Pretrained | str | os.PathLike[str]], data: Source | str, *, count: int = 100, kernel: int = 2
) -> Pretrained:
    """One network of trained ViTs, with the maps between their blocks that are best by least squares.

    For front block i and back block j of a window, X the outputs of the one and Y the inputs of the other, all tokens
    of all images as rows, ``W = argmin |[X, 1] W - Y|^2`` (section 3.2); a window's map is the mean over its pairs.

    Args:
      anchors: two or three models, or places of their weights; the narrowest becomes the first.
      data: a source; images of its training part are taken, evenly spread.
      count: how many.
      kernel: neighbouring blocks in a window, of which each is stitched to each.

    Returns:
      A model :class:`vit_jax.models.Stitched`, to be trained with ``objective="drawn(classify)"``.

    Raises:
      UserError: there is another number of them, or they are not alike: in depth, tokens, classes, preparation of
        images.

    Example:
      >>> vj.stitch(["runs/ti", "runs/s"], "folder:/my/images").model.first.width
      192
    """
    found = sorted(map(_read, anchors), key=lambda one: getattr(one.model, "width", 0))
    _check(found)
    fields: dict[str, Any] = {name: one.model for name, one in zip(ANCHORS, found, strict=False)}
    own = {"num_classes": found[0].model.num_classes, "dtype": found[0].model.dtype}
    model = Stitched(**fields, kernel=kernel, **own)
    forms, depth, kernel = len(model.routes), model.first.depth, min(kernel, model.first.depth)
    source = open_source(data, "train") if isinstance(data, str) else data
    preprocess, places = found[0].preprocess, np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    images = preprocess.prepare(np.stack([preprocess.read(source[int(i)]) for i in places]))
    params: dict[str, Any] = {name: one.params for name, one in zip(ANCHORS, found, strict=False)}
    states = [block_inputs(one.model, one.params, images) for one in found]
    for name, front, back in zip(ANCHORS, states, states[1:], strict=False):
        maps = {(i, j): least_squares(front[i + 1], back[j]) for i, j in _pairs(depth, kernel)}
        windows = range(depth - kernel + 1)
        params[f"stitches_{name}"] = {f"map_{w}": _mean([maps[pair] for pair in _window(w, kernel)]) for w in windows}
    names = ", ".join(one.source or "a model in memory" for one in found)
    note = f"{forms} forms of {names}, stitched by least squares on {len(places)} images"
    last = found[-1]
    return Pretrained(
        model, params, preprocess, last.class_names, last.output_activation, last.resize, source=names, notes=(note,)
    )


def _read(anchor: Pretrained | str | os.PathLike[str]) -> Pretrained:
    if isinstance(anchor, Pretrained):
        return anchor
    with read.load(os.fspath(anchor)) as found:
        return found.read()


def block_inputs(model: ViT, params: Params, images: Array) -> list[np.ndarray]:
    """What each block gets, and what the last one gives: ``depth + 1`` arrays float32 ``[B * N, D]``."""
    wide = model.clone(dtype="float32")

    @jax.jit
    def run(params: Params, images: jax.Array) -> list[jax.Array]:
        embedded, _ = wide.apply({"params": params}, images, False, method="embed")
        _, state = wide.apply({"params": params}, images, method="features", mutable=["features"])
        blocks = state["features"]["encoder"]
        return [embedded, *(blocks[f"block_{i}"] for i in range(model.depth))]

    parts = [run(params, part) for part in np.array_split(images, -(-len(images) // BATCH))]
    return [np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in rows]) for rows in zip(*parts, strict=True)]


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``argmin |[x, 1] W - y|``, the smallest of them: float64 ``[C + 1, D]`` of ``x [R, C]`` and ``y [R, D]``."""
    ones = np.ones((len(x), 1))
    return np.linalg.lstsq(np.concatenate([x.astype(np.float64), ones], axis=1), y.astype(np.float64), rcond=None)[0]


def _window(first: int, kernel: int) -> list[tuple[int, int]]:
    """Its pairs of blocks."""
    blocks = range(first, first + kernel)
    return [(i, j) for i in blocks for j in blocks]


def _pairs(depth: int, kernel: int) -> list[tuple[int, int]]:
    """Those of all windows, each once."""
    return list(dict.fromkeys(pair for first in range(depth - kernel + 1) for pair in _window(first, kernel)))


def _mean(maps: list[np.ndarray]) -> Params:
    """Kernel and bias of the mean of ``[C + 1, D]``."""
    mean = functools.reduce(np.add, maps) / len(maps)
    return {"kernel": jnp.asarray(mean[:-1], jnp.float32), "bias": jnp.asarray(mean[-1], jnp.float32)}


def _check(anchors: Sequence[Pretrained]) -> None:
    """Raises :class:`UserError` for anchors of which no network is made."""
    if len(anchors) not in (2, 3):
        raise UserError(f"a stitchable network has two or three anchors, not {len(anchors)}.")
    for one in anchors:
        check_anchor(one.model, one.source)
    first = anchors[0]
    for other in anchors[1:]:
        if first.class_names != other.class_names:
            raise UserError(f"{first.source} and {other.source} know other classes; anchors answer the same question.")
        if first.preprocess != other.preprocess:
            raise UserError(
                f"{first.source} and {other.source} prepare images differently; anchors see the same pixels. Train "
                "them with the same augment.size, crop and norm."
            )
