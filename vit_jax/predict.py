"""A checkpoint as a function of image files; it needs none of the data it was trained on.

:func:`load` tells what a checkpoint is: a :class:`Predictor` knows classes, an :class:`ImageText` model compares images
with texts and, if it has a decoder, writes captions. Each says what to ask instead where it has no answer.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.convert import Pretrained, read
from vit_jax.convert.preprocess import Image
from vit_jax.data.framing import Framed
from vit_jax.data.image import MAX_PIXELS
from vit_jax.data.sources import SOURCES, Record, Source, open_parts
from vit_jax.data.text import TextCodec
from vit_jax.decoding import SearchStrategy, generate, special_ids
from vit_jax.io import images as listing
from vit_jax.losses import PROBABILITIES
from vit_jax.models import ImageTextModel, ModelFn
from vit_jax.types import Params, UserError

log = logging.getLogger(__name__)

BATCH = 32
"""Images, or texts, that go through the model together."""
Row = dict[str, Any]
Images = Image | Iterable[Image]
"""One image (a file or folder, encoded bytes, uint8[H,W,C]) or several; ``"folder:PATH"`` names a source of them."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a source, read when it is needed."""

    source: Source
    index: int

    def read(self) -> tuple[Row, Record]:
        """Its name and, where it has them, the name of its class and its captions; and the record."""
        record, names = self.source[self.index], self.source.info.class_names
        row: Row = {"path": record["name"]} | ({"label": names[record["label"]]} if names else {})
        captions = [text for text in record.get("captions", ()) if text.strip()]
        return row | ({"captions": captions} if captions else {}), record


Listed = Image | Example


@dataclasses.dataclass(frozen=True)
class Trained:
    """A pretrained model as a function of images.

    Attributes:
      pretrained: model, parameters, preprocessing, and what is known of them.
      max_pixels: an image with more is unreadable, but for a JPEG.
    """

    pretrained: Pretrained
    max_pixels: int = MAX_PIXELS

    @property
    def model(self) -> Any:
        """The unbound module."""
        return self.pretrained.model

    @property
    def params(self) -> Params:
        """The model's parameters."""
        return self.pretrained.params

    @property
    def source(self) -> dict[str, Any]:
        """Where it comes from (the checkpoint and its provenance), for the record."""
        return {"checkpoint": self.pretrained.source, **self.pretrained.provenance}

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """As :func:`load`, of this kind.

        Raises:
          UserError: there is no readable checkpoint; it is of the other kind.
        """
        found = load(path)
        if not isinstance(found, cls):
            kinds = {Predictor: "a classifier", ImageText: "an image-text model"}
            raise UserError(f"{path} is {kinds[type(found)]}, but {kinds.get(cls, 'another kind')} is needed.")
        return found

    def image(self, source: Image | Record) -> np.ndarray | Framed:
        """A file, encoded bytes, uint8[H,W,C] or a record -> the uint8 canvas that the other methods take.

        Of a model that sees images in their own shape with its size.

        Raises:
          UserError: it is no readable image.
        """
        return self.pretrained.preprocess.read(source, self.max_pixels)

    def prepared(self, images: Any) -> Any:
        """uint8[B,S,S,3] -> float32[B,H,W,3] as the model takes it, or patches; traceable."""
        return self.pretrained.preprocess.prepare(images)

    @functools.cached_property
    def apply(self) -> ModelFn:
        """The model as a function of its parameters."""
        return ModelFn(self.model, self.pretrained.variables)

    def embed(self, canvases: np.ndarray) -> np.ndarray:
        """uint8[B,S,S,3] -> float32[B,E]: embeddings of unit length, or the pooled features of a classifier."""
        return np.asarray(self._embed(self.params, canvases))

    @functools.cached_property
    def _embed(self) -> Callable[[Params, Any], jax.Array]:
        def run(params: Params, images: jax.Array) -> jax.Array:
            return self.apply(params, self.prepared(images), method="embed_image")

        return jax.jit(run)

    def rows(
        self, images: Sequence[Listed], run: Callable[[np.ndarray, np.ndarray], Iterable[Row]], batch_size: int = BATCH
    ) -> Iterator[Row]:
        """A row for every image with what ``run`` finds, or ``"error"`` where it is unreadable.

        It says which: ``"path"`` of a file, else ``"image"``, the place among ``images``; of an example of a source its
        name, ``"label"`` and ``"captions"``.

        Args:
          images: files, encoded bytes, uint8[H,W,C] or examples.
          run: canvases uint8[B,S,S,3] and int32[B], which of ``images`` they are -> a row for each; always of one size,
            so that it is compiled once: the last are filled up.
          batch_size: images at a time.
        """
        for first in range(0, len(images), batch_size):
            rows: list[Row] = []
            canvases, index = [], []
            for i, image in enumerate(images[first : first + batch_size], first):
                rows.append({"path": str(image)} if isinstance(image, str | pathlib.Path) else {"image": i})
                try:
                    if isinstance(image, Example):
                        rows[-1], record = image.read()
                        canvases.append(self.image(record))
                    else:
                        canvases.append(self.image(image))
                    index.append(i)
                except UserError as e:
                    rows[-1]["error"] = str(e)
            size = batch_size if len(images) > batch_size else len(canvases)
            found = iter(run(_stacked(canvases, size), _filled(index, size)) if canvases else ())
            for row in rows:
                yield row if "error" in row else row | next(found)

    def __call__(self, images: Sequence[Listed], *, top: int = 5, batch_size: int = BATCH) -> Iterator[Row]:
        """``{"path", "predictions": [{"class", "probability"}, ...]}`` of every image, see :meth:`rows`."""
        raise UserError("an image-text model has no classes of its own; name them: --text 'a cat' 'a dog'.")

    def rank(
        self, images: Sequence[Listed], texts: Sequence[str], *, top: int = 5, batch_size: int = BATCH
    ) -> Iterator[Row]:
        """``{"path", "predictions": [{"text", "probability"}, ...]}`` of every image, see :meth:`rows`."""
        raise UserError("a classifier knows its own classes only; leave out --text, or take an image-text model.")

    def captions(self, images: Sequence[Listed], decoder: SearchStrategy, *, batch_size: int = BATCH) -> Iterator[Row]:
        """``{"path", "caption", "log_p"}`` of every image, see :meth:`rows`."""
        raise UserError("a classifier writes no captions; leave out --captions, or take a CoCa such as coca_vit_b32.")


@dataclasses.dataclass(frozen=True)
class Predictor(Trained):
    """A trained classifier with its preprocessing."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return self.pretrained.class_names

    def probabilities(self, canvases: np.ndarray) -> np.ndarray:
        """uint8[B,S,S,3] -> float32[B,C]; the pooled features float32[B,D] of a model without a head."""
        return np.asarray(self._compiled(self.params, canvases))

    @functools.cached_property
    def _compiled(self) -> Callable[[Params, Any], jax.Array]:
        return jax.jit(self.forward)

    def forward(self, params: Params, images: jax.Array) -> jax.Array:
        """What :meth:`probabilities` computes, preprocessing included: pure, traceable, for a batch of any size."""
        outputs = self.apply(params, self.prepared(images)).astype(jnp.float32)
        return PROBABILITIES[self.pretrained.output_activation](outputs) if self.model.num_classes else outputs

    def __call__(self, images: Sequence[Listed], *, top: int = 5, batch_size: int = BATCH) -> Iterator[Row]:
        if not self.class_names:
            raise UserError(
                f"{self.pretrained.source} has no head, so it names no classes; 'embed' writes its features."
            )

        def run(canvases: np.ndarray, _: np.ndarray) -> Iterator[Row]:
            return _best(self.probabilities(canvases), "class", self.class_names, top)

        return self.rows(images, run, batch_size)


@dataclasses.dataclass(frozen=True)
class ImageText(Trained):
    """A trained image-text model with its preprocessing."""

    @property
    def codec(self) -> TextCodec:
        """From texts to tokens and back.

        Raises:
          UserError: the weights came without a tokenizer.
        """
        if self.pretrained.encoder is None:
            raise UserError("these weights came without a tokenizer, so texts cannot be read; put it beside them.")
        return self.pretrained.encoder

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), E] of unit length; a warning says how many did not fit the context and were cut."""
        tokens = self.codec(texts)
        if cut := self.codec.truncated(texts):
            log.warning("%d of %d texts are longer than %d tokens and were cut.", cut, len(texts), self.codec.length)
        size = min(len(tokens), BATCH)
        parts = [tokens[i : i + size] for i in range(0, len(tokens), size or 1)]
        found = [np.asarray(self._embed_texts(self.params, _filled(part, size)))[: len(part)] for part in parts]
        return np.concatenate([np.zeros((0, self.model.embed_dim), np.float32), *found])

    @functools.cached_property
    def _embed_texts(self) -> Callable[[Params, Any], jax.Array]:
        return jax.jit(functools.partial(self.apply, method="embed_text"))

    def probabilities(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Embeddings float32[B,E] and float32[N,E] -> float64[B,N].

        Softmax over the texts, or, of a model trained with the sigmoid loss, of each text by itself.
        """
        scale, bias = (float(x) for x in self.apply(self.params, method="scalars"))
        logits = scale * (image.astype(np.float64) @ text.astype(np.float64).T) + bias
        if self.pretrained.output_activation == "sigmoid":
            return np.exp(-np.logaddexp(0.0, -logits))
        logits -= logits.max(axis=1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def rank(
        self, images: Sequence[Listed], texts: Sequence[str], *, top: int = 5, batch_size: int = BATCH
    ) -> Iterator[Row]:
        embedded = self.embed_texts(texts)

        def run(canvases: np.ndarray, _: np.ndarray) -> Iterator[Row]:
            return _best(self.probabilities(self.embed(canvases), embedded), "text", texts, top)

        return self.rows(images, run, batch_size)

    def captions(self, images: Sequence[Listed], decoder: SearchStrategy, *, batch_size: int = BATCH) -> Iterator[Row]:
        codec = self.codec
        ids = special_ids(codec.tokenizer)

        @jax.jit
        def write(params: Params, images: jax.Array, index: jax.Array) -> Any:
            prepared = self.prepared(images)
            return generate(self.apply, params, prepared, **ids, length=codec.length, decoder=decoder, rows=index)

        def run(canvases: np.ndarray, index: np.ndarray) -> Iterator[Row]:
            found = jax.device_get(write(self.params, canvases, index))
            for tokens, log_p in zip(found.tokens, found.log_p, strict=True):
                yield {"caption": codec.decode(tokens), "log_p": float(log_p)}

        return self.rows(images, run, batch_size)


def load(path: str | pathlib.Path) -> Predictor | ImageText:
    """From a workdir (its newest checkpoint), one checkpoint's folder, or weights of any format and place.

    Raises:
      UserError: there is no readable checkpoint.
    """
    with read.load(path) as found:
        if found.notes:
            log.warning("%s: %s", found.source, "; ".join(found.notes))
        return of(found.read())


def of(found: Pretrained) -> Predictor | ImageText:
    """``found`` as a function of images: the same one at every call, with what it has compiled."""
    kind = ImageText if isinstance(found.model, ImageTextModel) else Predictor
    return found.programs.setdefault(kind, kind(found))


def expand(images: Images) -> list[Listed]:
    """Files, bytes and arrays as they are, folders as the images in them (sorted, recursive), uint8[B,H,W,C] as B.

    A folder's images are those that training takes, see :func:`vit_jax.io.images.walk`; warnings say what is left out.
    A source such as ``"folder:PATH"`` is the examples of its own validation part, or all that it has.

    Raises:
      UserError: a path does not exist, or a folder holds no image.
    """
    if isinstance(images, str | pathlib.Path | bytes) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    out: list[Listed] = []
    for image in images:
        if isinstance(image, str) and image.partition(":")[0] in SOURCES and not os.path.exists(image):
            _, source = open_parts(image)
            out += [Example(source, i) for i in range(len(source))]
        else:
            out += _files(pathlib.Path(image)) if isinstance(image, str | pathlib.Path) else [image]
    return out


def _files(path: pathlib.Path) -> list[str]:
    if not os.path.exists(path):
        raise UserError(f"no such file or folder: {str(path)!r}.")
    if not os.path.isdir(path):
        return [str(path)]
    found = listing.walk(path)
    left_out = found.left_out(path)
    if not found.images:
        wanted = ", ".join(listing.SUFFIXES)
        raise UserError(f"the folder {str(path)!r} holds no image ({wanted}){'; '.join(['', *left_out])}")
    for note in left_out:
        log.warning(note)
    return [str(path / name) for name in sorted(found.images, key=lambda name: name.split("/"))]


def _stacked(canvases: Sequence[Any], size: int) -> Any:
    """As :func:`_filled`, of what :meth:`Trained.image` gives."""
    return jax.tree.map(lambda *rows: _filled(rows, size), *canvases)


def _filled(items: Sequence[Any] | np.ndarray, size: int) -> np.ndarray:
    """The items as one array, filled up with zeros to ``size``: one shape, one compilation."""
    array = np.asarray(items)
    array = array.astype(np.int32) if array.dtype == np.int64 else array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def _best(probabilities: np.ndarray, what: str, names: Sequence[str], top: int) -> Iterator[Row]:
    """The ``top`` of each row, the first of equal ones first."""
    for p in probabilities:
        best = np.argsort(-p, kind="stable")[: max(1, top)]
        yield {"predictions": [{what: names[i], "probability": float(p[i])} for i in best]}
