"""The proof of a conversion: the peer's own model, built by its own package, against ours on the same images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.convert import run_folder
from vit_jax.convert.pretrained import Preprocess, Stored
from vit_jax.convert.read import weights_of

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest value, or to 1 where that is smaller; float32."""
Outputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one of a peer's outputs is from ours.

    Attributes:
      peer: whose model, and of which weights.
      images: what was shown.
      difference: max |Δ|.
      largest: max |output| of ours.
      output: which, a name that :func:`outputs` gives.
    """

    peer: str
    images: str
    difference: float
    largest: float
    output: str = "logit"

    @property
    def ok(self) -> bool:
        """Whether it is within :data:`TOLERANCE`; False for NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def photographs(preprocess: Preprocess) -> np.ndarray:
    """Two photographs (scikit-learn's), prepared as the model wants them: float32[2,S,S,3]."""
    from sklearn.datasets import load_sample_images

    return np.asarray(preprocess(load_sample_images().images))


def inputs(preprocess: Preprocess) -> dict[str, np.ndarray]:
    """What the models are compared on, by name: noise and photographs, normalised, float32[B,S,S,3]."""
    shape = (4, preprocess.size, preprocess.size, 3)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return {"noise": noise, "photographs": photographs(preprocess)}


def texts(pretrained: Stored, count: int) -> np.ndarray:
    """Random texts int32[count, L] of the tower's vocabulary, laid out as its tokenizer does; the first is full."""
    tower, encoder = pretrained.model.text_tower, pretrained.encoder
    start = None if encoder is None else encoder.tokenizer.start_id
    pad = 0 if encoder is None else encoder.tokenizer.pad_id
    first = [] if start is None else [start]
    rng = np.random.default_rng(1)
    content = np.setdiff1d(np.arange(tower.vocab_size), [*first, tower.end_id, pad])
    out = np.full((count, tower.length), pad, np.int32)
    for i, row in enumerate(out):
        room = tower.length - len(first) - 1
        length = room if i == 0 else int(rng.integers(1, room + 1))
        ids = [*first, *rng.choice(content, length), tower.end_id]
        row[: len(ids)] = ids
    return out


def examples(pretrained: Stored) -> dict[str, tuple[np.ndarray, ...]]:
    """What the models are compared on, by name: images and, where the model takes them, texts, one per image."""
    images = inputs(pretrained.preprocess)
    if len(pretrained.model.inputs(1)) == 1:
        return {name: (batch,) for name, batch in images.items()}
    return {name: (batch, texts(pretrained, len(batch))) for name, batch in images.items()}


def outputs(pretrained: Stored) -> Callable[..., Outputs]:
    """Our model as a function of normalised images (and texts), in full float32 on every device.

    Returns:
      ``{"logit": float32[B,C]}`` or, of an image-text model, ``{"image embedding": float32[B,E], "text embedding":
      float32[B,E], "logit": float32[B,B]}`` and of one with a decoder ``"caption logit": float32[B,L,V]``, which is 0
      at padding: what a causal decoder makes of padding is nobody's output, and projects differ in it.
    """
    model = models.replace_in_towers(pretrained.model, dtype="float32")
    tree = pretrained.tree(jnp.asarray)
    apply = jax.jit(lambda params, *xs: _named(model.apply({"params": params}, *xs)))

    def run(*xs: np.ndarray) -> Outputs:
        with jax.default_matmul_precision("highest"):
            return {name: np.asarray(x) for name, x in apply(tree, *xs).items()}

    return run


def _named(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return dict(found)
    if not isinstance(found, models.Embedded):
        return {"logit": found}
    logits = found.scale * found.image @ found.text.T + found.bias
    out = {"image embedding": found.image, "text embedding": found.text, "logit": logits}
    if found.hidden is None or found.vocabulary is None or found.real is None:
        return out
    return out | {"caption logit": jnp.where(found.real[..., None], found.hidden @ found.vocabulary, 0.0)}


def compare(
    pretrained: Stored,
    ours: Mapping[str, Outputs],
    place: str | pathlib.Path,
    shown: Mapping[str, tuple[np.ndarray, ...]],
) -> Iterator[Difference]:
    """The project's own model with the weights at ``place`` against ``ours``, outputs by name of what was ``shown``.

    Raises:
      UserError: the project's package is not installed, or it has no reader for these weights.
    """
    with weights_of(place) as (fmt, path):
        if fmt is None:
            title, peer = "vit_jax", outputs(run_folder.load(path))
        else:
            title, peer = fmt.title, fmt.peer(path, pretrained.model)
    for name, batch in shown.items():
        theirs = _named(peer(*batch))
        assert theirs.keys() == ours[name].keys(), (title, theirs.keys())
        for output, value in ours[name].items():
            with np.errstate(invalid="ignore"):
                gap = float(np.max(np.abs(theirs[output] - value)))
            yield Difference(f"{title} on {place}", name, gap, float(np.max(np.abs(value))), output)


def verify(pretrained: Stored, places: list[Any]) -> list[Difference]:
    """Compares ``pretrained`` with the peer of every place, on noise and on photographs."""
    shown = examples(pretrained)
    run = outputs(pretrained)
    ours = {name: run(*batch) for name, batch in shown.items()}
    return [row for place in places for row in compare(pretrained, ours, place, shown)]
