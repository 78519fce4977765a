"""The proof of a conversion: the peer's own model, built by its own package, against ours on the same images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.augment.geometry import center_box, resample
from vit_jax.augment.policy import Norm
from vit_jax.convert import native
from vit_jax.convert.base import Preprocess, Pretrained
from vit_jax.convert.store import format_of
from vit_jax.data.decode import decode

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest logit, or to 1 where that is smaller; float32."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a peer's logits are from ours.

    Attributes:
      peer: whose model, and of which weights.
      images: what was shown.
      difference: max |Δlogit|.
      largest: max |logit| of ours.
    """

    peer: str
    images: str
    difference: float
    largest: float

    @property
    def ok(self) -> bool:
        """Whether it is within :data:`TOLERANCE`; False for NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def photographs(preprocess: Preprocess) -> np.ndarray:
    """Two photographs (scikit-learn's), prepared as the model wants them: float32[2,S,S,3]."""
    from sklearn.datasets import load_sample_images

    canvas = preprocess.host_canvas
    square = [
        decode({"image": x, "label": 0, "name": "sample"}, canvas, "center")[0] for x in load_sample_images().images
    ]
    box = center_box(canvas, preprocess.crop)
    cut = [resample(jnp.asarray(x), box, preprocess.size, preprocess.interpolation) for x in square]
    return np.asarray(Norm(preprocess.mean, preprocess.std)(jnp.stack(cut)))


def inputs(preprocess: Preprocess) -> dict[str, np.ndarray]:
    """What the models are compared on, by name: noise and photographs, normalised, float32[B,S,S,3]."""
    shape = (4, preprocess.size, preprocess.size, 3)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return {"noise": noise, "photographs": photographs(preprocess)}


def logits(pretrained: Pretrained) -> Callable[[np.ndarray], np.ndarray]:
    """Our model as a function of normalised images, in full float32 on every device."""
    model = pretrained.model.clone(dtype="float32") if hasattr(pretrained.model, "dtype") else pretrained.model
    tree = pretrained.tree(jnp.asarray)
    apply = jax.jit(lambda params, images: model.apply({"params": params}, images))

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(apply(tree, images))

    return run


def compare(
    pretrained: Pretrained, ours: Mapping[str, np.ndarray], place: str | pathlib.Path, images: Mapping[str, np.ndarray]
) -> Iterator[Difference]:
    """The project's own model with the weights at ``place`` against ``ours``, logits by name of ``images``.

    Raises:
      UserError: the project's package is not installed, or it has no reader for these weights.
    """
    fmt, path = format_of(place)
    if fmt is None:
        title, peer = "vit_jax", logits(native.load(path))
    else:
        title, peer = fmt.title, fmt.peer(path, pretrained.model)
    for name, batch in images.items():
        with np.errstate(invalid="ignore"):
            gap = float(np.max(np.abs(peer(batch) - ours[name])))
        yield Difference(f"{title} on {place}", name, gap, float(np.max(np.abs(ours[name]))))


def verify(pretrained: Pretrained, places: list[Any]) -> list[Difference]:
    """Compares ``pretrained`` with the peer of every place, on noise and on photographs."""
    images = inputs(pretrained.preprocess)
    run = logits(pretrained)
    ours = {name: run(batch) for name, batch in images.items()}
    return [row for place in places for row in compare(pretrained, ours, place, images)]
