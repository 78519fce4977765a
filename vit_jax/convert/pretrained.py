"""What travels with weights: the model, how its images are prepared, its classes and its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import numpy as np

from vit_jax.config import Imports
from vit_jax.convert.preprocess import Preprocess
from vit_jax.data.text import TextCodec
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.embed import resize_positions
from vit_jax.trees import flat, nested
from vit_jax.types import Params

P = TypeVar("P")
POSITION = "position/embedding"
"""The leaf of an image model's positions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Described(Generic[P]):
    """A model with its parameters and metadata.

    Attributes:
      model: unbound module, an :class:`vit_jax.models.ImageModel` or a :class:`vit_jax.models.TwoTower`.
      params: the model's parameters.
      preprocess: how its images are prepared.
      class_names: names of the head's outputs, empty where it has no head.
      output_activation: how logits become probabilities, ``"softmax"`` or ``"sigmoid"``.
      resize: how the model's origin resizes position embeddings, a method of ``layers.embed.resize_positions``.
      source: path or address that the weights were read from.
      notes: one human-readable note per thing that was converted, assumed or left out.
      config: configuration of the run that trained the model, plain data; None for weights of others.
      provenance: versions, commit and the like of that run or of the conversion.
      encoder: tokenizer and context length; None where the model takes no texts, or where no tokenizer was found.
      variables: the model's collections besides the parameters, batch statistics for instance; {} for most models.
      assumed: fields of the model that no file told, a dot between those of towers -> the note that says so.
      native: side of the images that the stored positions are for, where the origin resizes them to that of
        ``preprocess``, as DINOv2's does; None where they fit.
      imports: files and modules that define classes which ``config`` names.
    """

    model: Any
    params: P
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    output_activation: str = "softmax"
    resize: str = "bilinear"
    source: str = ""
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encoder: TextCodec | None = None
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    native: int | None = None
    imports: Imports = ()

    def _others(self) -> dict[str, Any]:
        """Every field but ``params``."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init and f.name != "params"}


@dataclasses.dataclass(frozen=True)
class Stored(Described[Tensors]):
    """A model with parameters that are read when needed: leaves by path, ``"encoder/block_0/norm_mlp/scale"``."""

    def tree(self, place: Callable[[np.ndarray], Any] = np.asarray) -> dict[str, Any]:
        """All parameters in memory, each through ``place``, as the nested dictionaries that ``model.apply`` takes."""
        return nested({path: place(tensor.read()) for path, tensor in self.params.items()})

    def read(self) -> Pretrained:
        """The same with all parameters as arrays, ready to use."""
        fitted = self.fitted()
        return Pretrained(params=fitted.tree(jnp.asarray), **fitted._others())

    def fitted(self) -> Stored:
        """The same with positions for images as ``preprocess`` makes them, resized as the model's origin does it."""
        if self.native in (None, self.preprocess.size):
            return dataclasses.replace(self, native=None)
        assert self.native is not None
        grids = [(side // self.model.patch,) * 2 for side in (self.native, self.preprocess.size)]
        position = self.params[POSITION]
        prefix = position.shape[1] - grids[0][0] ** 2

        def read() -> np.ndarray:
            return resize_positions(position.read(), grids[0], grids[1], prefix, self.resize)

        shape = (1, prefix + grids[1][0] ** 2, position.shape[2])
        note = f"positions for {self.native} px are resized to {self.preprocess.size} px, as its origin does"
        params = {**self.params, POSITION: Tensor(shape, position.dtype, read)}
        return dataclasses.replace(self, params=params, native=None, notes=(*self.notes, note))

    def unfitted(self) -> tuple[Stored, list[str]]:
        """The same with images as its positions are stored for, and a note of that; for formats that never resize."""
        if self.native in (None, self.preprocess.size):
            return self, []
        preprocess = dataclasses.replace(self.preprocess, size=self.native)
        note = f"images have {self.native} px there, as the positions are stored for, not {self.preprocess.size}"
        return dataclasses.replace(self, preprocess=preprocess, native=None), [note]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained(Described[Params]):
    """A model ready to use; ``params`` are the nested dictionaries of arrays that ``model.apply`` takes.

    It unpacks into the three things that a program of one's own needs. ``programs`` holds what was compiled for it.

    Example:
      >>> model, params, preprocess = vit_jax.load("runs/digits")
      >>> logits = model.apply({"params": params}, preprocess(["a.png", "b.png"]))
    """

    programs: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __iter__(self) -> Iterator[Any]:
        """``model, params, preprocess``."""
        return iter((self.model, self.params, self.preprocess))

    def stored(self) -> Stored:
        """The same with its parameters by path, as what writes formats takes it."""
        return Stored(params=leaves(self.params), **self._others())


def leaves(tree: Params) -> dict[str, Tensor]:
    """Parameters on the device as leaves by path, fetched when they are read."""

    def tensor(leaf: Any) -> Tensor:
        return Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(np.asarray, leaf))

    return {path: tensor(leaf) for path, leaf in flat(tree).items()}


def numbered(class_names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The names where there is one per class, else "0", "1", ..."""
    return class_names if len(class_names) == num_classes else tuple(map(str, range(num_classes)))
