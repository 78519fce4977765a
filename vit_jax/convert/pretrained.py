"""What travels with weights: the model, how its images are prepared, its classes and its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.augment import NORMS, Augment
from vit_jax.augment.geometry import Interpolation
from vit_jax.data.image import decode
from vit_jax.data.text import TextCodec
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.trees import flat, nested
from vit_jax.types import Array, Params, UserError

P = TypeVar("P")
Image = str | pathlib.Path | bytes | np.ndarray
"""A file, encoded bytes or uint8[H,W,C]."""
RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image to a model's input: its centre square, ``crop`` of that, resized to ``size``, normalised.

    Example:
      >>> preprocess("cat.jpg").shape, preprocess(["cat.jpg", "dog.jpg"]).shape
      ((224, 224, 3), (2, 224, 224, 3))

    Attributes:
      size: side of the input in pixels.
      crop: fraction of the image's short side that is kept.
      interpolation: filter, antialiased.
      mean: subtracted from each channel of an image in [0, 1].
      std: what each channel is then divided by.
      canvas: side of the square that the host makes of an image; None is ``size / crop``, which is cut, not resampled.
    """

    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: RGB = (0.5, 0.5, 0.5)
    std: RGB = (0.5, 0.5, 0.5)
    canvas: int | None = None

    @property
    def host_canvas(self) -> int:
        """``canvas``, its default worked out."""
        return self.canvas or round(self.size / self.crop)

    def __call__(self, images: Image | Sequence[Image]) -> jax.Array:
        """What the model takes of one image, or of several.

        Args:
          images: a file, encoded bytes or uint8[H,W,C]; a list of these, or uint8[B,H,W,C], for a batch.

        Returns:
          float32[S,S,3], of several float32[B,S,S,3]; S is ``size``.

        Raises:
          UserError: one is no readable image.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            return _prepare(self, np.stack([read_image(x, self.host_canvas) for x in images]))
        return _prepare(self, read_image(images, self.host_canvas)[None])[0]

    def prepare(self, canvases: Array) -> jax.Array:
        """uint8[B,K,K,3], K being :attr:`host_canvas` -> float32[B,S,S,3] as the model takes it; traceable."""
        return config.parse(Augment, self.augment()).eval_fn()({"image": canvases})["image"]

    def augment(self) -> dict[str, Any]:
        """The same preparation as plain data: the ``augment`` section of a training configuration."""
        known = {n: row().mean + row().std for n, row in NORMS.items() if n != "norm"}
        names = [name for name, values in known.items() if np.allclose(values, self.mean + self.std, atol=1e-7)]
        norm: Any = names[0] if names else {"name": "norm", "mean": self.mean, "std": self.std}
        return {"size": self.size, "crop": self.crop, "interpolation": self.interpolation, "norm": norm}

    @classmethod
    def of(cls, augment: Augment, canvas: int) -> Preprocess:
        """What a run evaluates with."""
        return cls(augment.size, augment.crop, augment.interpolation, augment.norm.mean, augment.norm.std, canvas)


def read_image(image: Image, canvas: int) -> np.ndarray:
    """The centre square of a file, encoded bytes or uint8[H,W,C], as uint8[canvas,canvas,3].

    Raises:
      UserError: it is no readable image.
    """
    name = str(image) if isinstance(image, str | pathlib.Path) else "image"
    if isinstance(image, str | pathlib.Path):
        try:
            image = pathlib.Path(image).read_bytes()
        except OSError as e:
            raise UserError(f"{name} cannot be read ({e.strerror}).") from e
    return decode({"image": image, "label": 0, "name": name}, canvas, "center")[0]


@functools.partial(jax.jit, static_argnums=0)
def _prepare(preprocess: Preprocess, canvases: np.ndarray) -> jax.Array:
    return preprocess.prepare(canvases)


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
        """The same with all parameters as arrays."""
        return Pretrained(params=self.tree(jnp.asarray), **self._others())


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
