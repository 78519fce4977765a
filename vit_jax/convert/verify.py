"""The proof of a conversion: the peer's own model, built by its own package, against ours on the same images."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax import models
from vit_jax.augment import patches
from vit_jax.convert import run_folder
from vit_jax.convert.format import Format
from vit_jax.convert.preprocess import Preprocess, stacked
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.read import weights_of
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.types import Patches

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest value, or to 1 where that is smaller; float32."""
PIXELS = 1.01
"""Largest difference of pixels allowed: one grey level of 255, to which resized images are rounded."""
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
        """Whether it is within :data:`TOLERANCE`, of pixels within :data:`PIXELS`; False for NaN."""
        return self.difference <= (PIXELS if self.output == "pixel" else TOLERANCE * max(1.0, self.largest))


def photographs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of scikit-learn's two photographs in ``folder``: wide, tall, square and tiny."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    found = {
        "wide": china,
        "tall": flower[:, 170:375],
        "square": china[:400, 120:520],
        "tiny": flower[200:223, 300:337],
    }
    for name, image in found.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in found]


def noise(preprocess: Preprocess) -> Any:
    """What no photograph shows: float32[4,S,S,3] of standard deviation 1; patches of four images of unlike shapes."""
    if preprocess.frame.mode == "patches":
        patch = preprocess.frame.patch
        side = preprocess.size // patch
        at, real = patches.places(jnp.array([[side, side], [1, side], [side, 1], [side - 1, side]]), side * side)
        drawn = np.random.default_rng(0).standard_normal((4, side * side, 3 * patch * patch), np.float32)
        return Patches(*(np.asarray(x) for x in (np.where(real[..., None], drawn, 0), at, real)))
    side = preprocess.size + preprocess.frame.rest
    return np.random.default_rng(0).standard_normal((4, side, side, 3), np.float32)


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


def outputs(pretrained: Stored) -> Callable[..., Outputs]:
    """Our model as a function of normalised images (and texts), in full float32 on every device.

    Returns:
      ``{"logit": float32[B,C]}`` or, of an image-text model, ``{"image embedding": float32[B,E], "text embedding":
      float32[B,E], "logit": float32[B,B]}`` and of one with a decoder ``"caption logit": float32[B,L,V]``, which is 0
      at padding: what a causal decoder makes of padding is nobody's output, and projects differ in it.
    """
    model = models.replace_in_towers(pretrained.model, dtype="float32")
    tree = {"params": pretrained.tree(jnp.asarray), **pretrained.variables}
    apply = jax.jit(lambda variables, *xs: _named(model.apply(variables, *xs)))

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


def compare(pretrained: Stored, place: str | pathlib.Path) -> Iterator[Difference]:
    """The project's own processor and model with what lies at ``place`` against ours.

    Pixels first: of the same files, in grey levels. Then outputs: of noise, and of the project's own pixels.

    Raises:
      UserError: the project's package is not installed, or it has no reader for these weights.
    """
    with weights_of(place) as (fmt, path):
        if fmt is None:
            there = run_folder.load(path)
            title, peer, preprocess = "vit_jax", outputs(there), pretrained.preprocess
            process: Process | None = lambda file: jax.tree.map(np.asarray, there.preprocess(file))  # noqa: E731
        else:
            title, peer, preprocess = fmt.title, fmt.peer(path, pretrained.model), _preprocess(fmt, path)
            process = fmt.processor(path, pretrained.model)
    run = outputs(dataclasses.replace(pretrained, preprocess=preprocess).fitted())
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(pathlib.Path(folder))
        pixels = jax.tree.map(np.asarray, preprocess(files))
        if process is not None:
            theirs = stacked([process(file) for file in files])
            yield Difference(
                f"{title} on {place}", "photographs", grey_levels(pixels, theirs, preprocess), 255.0, "pixel"
            )
            pixels = pixels if _smaller(theirs, pixels) else theirs
    size = preprocess.size
    for name, batch in {"noise": noise(preprocess), "photographs": pixels}.items():
        more = [texts(pretrained, len(files))] if len(pretrained.model.inputs(1)) > 1 else []
        seen = batch if isinstance(batch, Patches) else batch[:, :size, :size]
        found, ours = _named(peer(batch, *more)), run(seen, *more)
        assert found.keys() == ours.keys(), (title, found.keys())
        for output, value in ours.items():
            yield Difference(
                f"{title} on {place}", name, _gap(found[output], value), float(np.abs(value).max()), output
            )


Process = Callable[[pathlib.Path], Any]
"""A file -> what the model takes of it, float32[S,S,3] or one image's patches."""


def _smaller(a: Any, b: Any) -> bool:
    return not isinstance(a, Patches) and a.shape[1] < b.shape[1]


def grey_levels(ours: Any, theirs: Any, preprocess: Preprocess) -> float:
    """Largest difference of normalised images, as uint8 has it; infinite between images of different sizes.

    What a model leaves out at the edge, ``preprocess.frame.rest``, is not compared.
    """
    std = np.array(preprocess.std, np.float32)
    if isinstance(ours, Patches):
        same = isinstance(theirs, Patches) and all(map(np.array_equal, ours[1:], theirs[1:]))
        levels = [x.pixels.reshape(*x.pixels.shape[:2], -1, 3) * std for x in (ours, theirs)]
        return 255 * _gap(*levels) if same else float("inf")
    side = preprocess.size + preprocess.frame.rest
    if theirs.shape[1:3] not in ((side, side), ours.shape[1:3]):
        return float("inf")
    theirs = theirs[:, : preprocess.size, : preprocess.size]
    return 255 * _gap(theirs * std, ours * std)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(a - b)))


def _preprocess(fmt: Format, path: pathlib.Path) -> Preprocess:
    with open_tensors(path) as theirs:
        return fmt.read(theirs, beside(path)).preprocess


def verify(pretrained: Stored, places: list[Any]) -> list[Difference]:
    """Compares ``pretrained`` with the peer of every place, on noise and on photographs."""
    return [row for place in places for row in compare(pretrained, place)]
