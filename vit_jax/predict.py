"""A checkpoint as a function from image files to class names; needs none of the data it was trained on."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import convert
from vit_jax.config import parse
from vit_jax.convert import native
from vit_jax.data.decode import decode
from vit_jax.data.sources.folder import IMAGE_SUFFIXES
from vit_jax.losses import PROBABILITIES
from vit_jax.models import ImageModel
from vit_jax.train.config import TrainConfig
from vit_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained classifier with its preprocessing.

    Attributes:
      config: of the training run.
      model: unbound module.
      params: its parameters.
      class_names: of its outputs.
      source: where it comes from (the checkpoint and its provenance), for the record.
    """

    config: TrainConfig
    model: ImageModel
    params: Params
    class_names: tuple[str, ...]
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Predictor:
        """From a workdir (its newest checkpoint), one checkpoint's folder, or weights of any format and place.

        Raises:
          UserError: there is no readable checkpoint.
        """
        with convert.load(path) as found:
            config = parse(TrainConfig, native.run_config(found))
            params = found.tree(jnp.asarray)
        source = {"checkpoint": found.source, **found.provenance}
        return cls(config, found.model, params, found.class_names, source)

    def image(self, source: str | pathlib.Path | bytes | np.ndarray) -> np.ndarray:
        """A file, encoded bytes or uint8[H,W,C] -> the uint8 canvas that :meth:`probabilities` takes.

        Raises:
          UserError: it is no readable image.
        """
        name = str(source) if isinstance(source, str | pathlib.Path) else "image"
        if isinstance(source, str | pathlib.Path):
            try:
                source = pathlib.Path(source).read_bytes()
            except OSError as e:
                raise UserError(f"{name} cannot be read ({e.strerror}).") from e
        return decode({"image": source, "label": 0, "name": name}, self.config.data.canvas, "center")[0]

    def probabilities(self, canvases: np.ndarray) -> np.ndarray:
        """uint8[B,S,S,3] -> float32[B,C]; the pooled features float32[B,D] of a model without a head."""
        return np.asarray(self._compiled(self.params, canvases))

    @functools.cached_property
    def _compiled(self) -> Callable[[Params, Any], jax.Array]:
        return jax.jit(self.forward)

    def forward(self, params: Params, images: jax.Array) -> jax.Array:
        """What :meth:`probabilities` computes, preprocessing included: pure, traceable, for a batch of any size."""
        prepared = self.config.augment.eval_fn()({"image": images})["image"]
        outputs: Any = self.model.apply({"params": params}, prepared)
        outputs = outputs.astype(jnp.float32)
        return PROBABILITIES[self.config.objective.link](outputs) if self.model.num_classes else outputs

    def __call__(self, paths: Sequence[str], *, top: int = 5, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """``{"path", "predictions": [{"class", "probability"}, ...]}`` of every file; ``"error"`` where unreadable."""
        for first in range(0, len(paths), batch_size):
            part = paths[first : first + batch_size]
            canvases, rows = [], []
            for path in part:
                try:
                    canvases.append(self.image(path))
                    rows.append({"path": path, "predictions": None})
                except UserError as e:
                    rows.append({"path": path, "error": str(e)})
            found = iter(self._ranked(canvases, top, batch_size if len(paths) > batch_size else len(canvases)))
            for row in rows:
                yield row if "error" in row else row | {"predictions": next(found)}

    def _ranked(self, canvases: Sequence[np.ndarray], top: int, rows: int) -> Iterable[list[Mapping[str, Any]]]:
        if not canvases:
            return
        padded = np.zeros((rows, *canvases[0].shape), np.uint8)  # one shape, one compilation
        padded[: len(canvases)] = canvases
        for p in self.probabilities(padded)[: len(canvases)]:
            best = np.argsort(-p, kind="stable")[: max(1, top)]
            yield [{"class": self.class_names[i], "probability": float(p[i])} for i in best]


def expand(paths: Iterable[str]) -> list[str]:
    """Files as they are, folders as the images in them (sorted, recursive).

    Raises:
      UserError: a path does not exist, or a folder holds no image.
    """
    files: list[str] = []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise UserError(f"no such file or folder: {str(path)!r}.")
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"the folder {str(path)!r} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        files += map(str, found)
    return files
