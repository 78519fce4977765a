"""What travels with weights, and what a format has to say of itself."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import checkpoint, config, models
from vit_jax.augment import NORMS, Augment
from vit_jax.augment.geometry import Interpolation
from vit_jax.convert.table import Rule
from vit_jax.data.image import decode
from vit_jax.data.text import TextCodec
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.linear import Dense, LinearSpec
from vit_jax.layers.mlp import TOPK, TopK
from vit_jax.layers.specs import name_of
from vit_jax.types import Params, UsageError, UserError

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
    return config.parse(Augment, preprocess.augment()).eval_fn()({"image": canvases})["image"]


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

    def _others(self) -> dict[str, Any]:
        """Every field but ``params``."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "params"}


@dataclasses.dataclass(frozen=True)
class Stored(Described[Tensors]):
    """A model with parameters that are read when needed: leaves by path, ``"encoder/block_0/norm_mlp/scale"``."""

    def tree(self, place: Callable[[np.ndarray], Any] = np.asarray) -> dict[str, Any]:
        """All parameters in memory, each through ``place``, as the nested dictionaries that ``model.apply`` takes."""
        out: dict[str, Any] = {}
        for path, tensor in self.params.items():
            *folders, leaf = path.split("/")
            node = functools.reduce(lambda n, key: n.setdefault(key, {}), folders, out)
            node[leaf] = place(tensor.read())
        return out

    def read(self) -> Pretrained:
        """The same with all parameters as arrays."""
        return Pretrained(params=self.tree(jnp.asarray), **self._others())


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained(Described[Params]):
    """A model ready to use; ``params`` are the nested dictionaries of arrays that ``model.apply`` takes.

    It unpacks into the three things that a program of one's own needs.

    Example:
      >>> model, params, preprocess = vit_jax.load("runs/digits")
      >>> logits = model.apply({"params": params}, preprocess(["a.png", "b.png"]))
    """

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

    return {path: tensor(leaf) for path, leaf in checkpoint.flat(tree).items()}


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a format finds out before it reads a number.

    Attributes:
      model: fields of the model, plain data with its ``name``.
      preprocess: how the model's images are prepared, where known.
      class_names: names of the head's outputs, where known.
      layout: whatever ``Format.rules`` needs to know of this file.
      unused: tensors that may be left out -> why.
      notes: one human-readable note per assumption.
      output_activation: how logits become probabilities, ``"softmax"`` or ``"sigmoid"``.
      resize: how position embeddings are resized; None for the format's usual way.
      encoder: tokenizer and context length, where known.
    """

    model: Mapping[str, Any]
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    layout: Any = None
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_activation: str = "softmax"
    resize: str | None = None
    encoder: TextCodec | None = None


@dataclasses.dataclass(frozen=True)
class Writing:
    """How a format stores a model.

    Attributes:
      layout: for ``Format.rules``.
      about: files beside the weights, bytes for those that are no JSON.
      notes: one human-readable note per thing that the format cannot say or says otherwise.
      extra: tensors that its project expects and that hold nothing of ours.
    """

    layout: Any
    about: About
    notes: tuple[str, ...] = ()
    extra: Tensors = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which others store models.

    Attributes:
      name: as the user writes it.
      title: of the project it belongs to, for messages.
      suffix: of the weights' file, ``".safetensors"`` or ``".npz"``.
      resize: how its project resizes positions.
      matches: whether tensors of these names are in this format.
      read: names, shapes and the JSON files beside them -> :class:`Reading`.
      rules: ``(model, layout)`` -> every tensor of the file.
      write: a model -> :class:`Writing`; raises :class:`UserError` where the format cannot express it.
      peer: ``(path, our model)`` -> the project's own model with the weights at ``path``, as a function from normalised
        images float32[B,H,W,3] to logits float32[B,C] (pooled features without a head); or, of an image-text model,
        from such images and texts int32[B,L] to arrays by the names that :func:`.verify.outputs` gives them.
      weights: name of the weights in a folder.
    """

    name: str
    title: str
    suffix: str
    resize: str
    matches: Callable[[Collection[str]], bool]
    read: Callable[[Tensors, About], Reading]
    rules: Callable[[Any, Any], list[Rule]]
    write: Callable[[Stored], Writing]
    peer: Callable[[pathlib.Path, Any], Callable[..., Any]]
    weights: str = "model.safetensors"


def classes(model: nn.Module) -> int:
    """Outputs of the head; 0 for a model without one, as image-text models are."""
    return getattr(model, "num_classes", 0)


def check_known(model: nn.Module, title: str) -> None:
    """Raises a :class:`UserError` for what only this project has, in ``model`` or in a module among its fields."""
    if "name" not in describe(model):
        raise UserError(f"{title} has no {type(model).__name__}; write --to vit_jax.")
    _check_parts(model, title)


def _check_parts(model: nn.Module, title: str) -> None:
    if isinstance(model, models.MonarchMixer):
        raise UserError(f"{title} has no Monarch Mixers; write --to vit_jax.")
    for field in dataclasses.fields(model):
        value: Any = getattr(model, field.name) if field.name not in ("parent", "name") else None
        if isinstance(value, TopK):
            raise UserError(f"{title} has no {field.name}='topk({value.k})'; write --to vit_jax.")
        if isinstance(value, LinearSpec) and value != Dense():
            raise UserError(
                f"{title} has dense maps alone, not {field.name}='{name_of(value)}'; add --linear dense, which "
                "multiplies them out, or write --to vit_jax."
            )
        if isinstance(value, nn.Module):
            _check_parts(value, title)


def describe(model: nn.Module) -> dict[str, Any]:
    """A model as plain data: its row of ``models.MODELS``, all of whose fields it has, and what it has besides.

    Towers and decoders are described likewise, by what they have besides the row's. ``config.parse`` gives the model
    back.
    """
    rows = {n: _row_fields(r) for n, r in models.MODELS.items() if getattr(r, "func", r) is type(model)}
    if not rows:
        return config.record(model)
    name = max((n for n, fields in rows.items() if _has(model, fields)), key=lambda n: len(rows[n]))
    return {"name": name, **_besides(model, rows[name])}


def _row_fields(row: Any) -> dict[str, Any]:
    return getattr(row, "keywords", {})


def _has(model: nn.Module, fields: Mapping[str, Any]) -> bool:
    """Whether ``model`` is what ``fields`` name, in all of those fields."""
    if "name" in fields:
        if getattr(row := models.NAMES[fields["name"]], "func", row) is not type(model):
            return False
        fields = own_fields(fields)
    types = config.hints(type(model))
    for key, value in fields.items():
        own = getattr(model, key)
        if isinstance(own, nn.Module) and not isinstance(value, nn.Module):
            if not _has(own, value):
                return False
        elif own != config.parse(types[key], value):
            return False
    return True


def _besides(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``model`` that neither ``fields``, which it has, nor the defaults of its class give."""
    fields = own_fields(fields) if "name" in fields else fields
    types, out = config.hints(type(model)), {}
    defaults = {f.name: f.default for f in dataclasses.fields(type(model))}
    for key, own in ((key, getattr(model, key)) for key in types):
        if not isinstance(own, nn.Module):
            if key not in fields and own != defaults[key]:
                out[key] = _plain(own, types[key])
        elif key in fields or own != defaults[key]:
            named = typing.get_origin(types[key]) is typing.Annotated and key not in fields
            inner = describe(own) if named else _besides(own, fields.get(key, {}))
            out |= {key: inner} if inner or key not in fields else {}
    return out


def _plain(value: Any, hint: Any) -> Any:
    """A field's value as a configuration says it: a frozen value by its name and fields, anything else as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    table = next((a.table for a in typing.get_args(hint) if isinstance(a, config.Choice)), TOPK)
    name = next((name for name, row in table.items() if row is type(value)), None)
    if name is None:
        return config.record(value)
    return {"name": name, **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}}


def build(fields: Mapping[str, Any], name: str | None = None) -> Any:
    """The model with ``fields`` (plain data), those of the user's ``name`` taking precedence.

    Args:
      fields: with the key ``"name"``.
      name: ``"vit_b16"`` or ``"vit_b16(activation='gelu_tanh')"``, what the user says it is; None leaves it open.

    Raises:
      UsageError: an unknown name or field; another kind of model than the fields are of.
    """
    merged = dict(fields)
    if name is not None:
        given = config.spec_fields(name, models.NAMES, "--model")
        row = config.lookup(models.NAMES, given["name"], "model")
        kind, found = (getattr(r, "func", r) for r in (row, config.lookup(models.NAMES, fields["name"], "model")))
        if kind is not found:
            raise UsageError(f"--model {name} is a {kind.__name__}, but the weights are of a {found.__name__}.")
        merged = over(fields, given)
    return config.parse(typing.Annotated[Any, config.Choice(models.NAMES)], merged, "model")


def own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of the row that they name spelled out, without the name."""
    row = _row_fields(config.lookup(models.NAMES, fields["name"], "model"))
    return over(row, {k: v for k, v in fields.items() if k != "name"})


def over(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` on top of ``fields``; objects in them likewise, unless ``more`` names one of another kind."""
    low, high = (_spelled(f) for f in (fields, more))
    if "name" in high and high["name"] != low.get("name", high["name"]):
        return high
    both = {k for k in low.keys() & high.keys() if isinstance(low[k], Mapping) and isinstance(high[k], Mapping)}
    return {**low, **high, **{k: over(low[k], high[k]) for k in both}}


def _spelled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of the row that they name spelled out and the row without any as the name."""
    if fields.get("name") not in models.NAMES:
        return dict(fields)
    kind = getattr(row := models.NAMES[fields["name"]], "func", row)
    bare = next(n for n, r in models.MODELS.items() if getattr(r, "func", r) is kind and not _row_fields(r))
    return {"name": bare, **own_fields(fields)}


def shapes(model: Any, size: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the model's parameters for images of ``size`` pixels; computes nothing."""
    return dict(_shapes(model, size))


@functools.lru_cache(maxsize=128)  # a conversion asks for the same model's several times, and tracing takes long
def _shapes(model: Any, size: int) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda *xs: model.init(jax.random.key(0), *xs)["params"], *model.inputs(size))
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def square(tokens: int, what: str) -> int:
    """Side of the square grid with ``tokens`` patches.

    Raises:
      UserError: it is none.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UserError(f"{what} holds {tokens} positions, no square grid; only square images are converted.")
    return side


def heads_of(width: int, depth: int, mlp_dim: int) -> tuple[int, str | None]:
    """Number of heads of a published ViT of this size, else one per 64 channels and a note that says so."""
    for fields in models.vit.SIZES.values():
        if (fields["width"], fields["depth"], fields["mlp_dim"]) == (width, depth, mlp_dim):
            return fields["heads"], None
    heads = max(1, width // 64)
    return heads, f"{heads} heads are assumed (one per 64 channels; no published model is {width} wide, {depth} deep)"


def numbered(class_names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The names where there is one per class, else "0", "1", ..."""
    return class_names if len(class_names) == num_classes else tuple(map(str, range(num_classes)))
