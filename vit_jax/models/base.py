"""What every image model returns and shares."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vit_jax import trees
from vit_jax.checks import Finite, Range
from vit_jax.layers import scales
from vit_jax.layers.linear import Linear
from vit_jax.layers.linear.block_diagonal import BlockDiagonal
from vit_jax.layers.linear.block_sparse import BlockSparse
from vit_jax.layers.linear.int8 import Int8
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.layers.linear.sparse24 import Packed24
from vit_jax.layers.stack import Layered, TransformerStack
from vit_jax.models.roles import Model, Role
from vit_jax.types import OutputActivation, Params, Patches, UserError


class Features(NamedTuple):
    """What a model knows about a batch of images.

    Attributes:
      tokens: ``[B, N, D]`` after the last norm, in the compute type: cls (if any), registers, the grid row by row; what
        is left of it where tokens were reduced.
      pooled: float32 ``[B, D]``, what the head sees.
      size: float32 ``[B, N]``, how many of the grid each token stands for, 0 for padding; None: one.
    """

    tokens: jax.Array
    pooled: jax.Array
    size: jax.Array | None = None


class ImageModel(Model):
    """Images to features to logits; a subclass writes :meth:`encode`.

    Attributes:
      num_classes: outputs of the head; 0 for no head, the logits are then the pooled features.
      head_bias_init: initial bias of the head (a large negative one for sigmoid losses).
      scales: sizes at which an image is looked at, in tiles of the first, side 1 being its own; features of all are
        beside each other (S2, Shi et al. 2024, arXiv:2403.13043). No parameter but the head's depends on it.
    """

    num_classes: Annotated[int, Range(0, 2**20)] = 1000
    head_bias_init: Finite = 0.0
    scales: tuple[Annotated[float, Range(1 / 16, 16)], ...] = (1.0,)

    def encode(self, image: jax.Array, train: bool) -> Features:
        raise NotImplementedError

    def check_patches(self) -> None:
        """Raises :class:`UserError` where images cannot come as :class:`vit_jax.types.Patches`, of unlike shapes."""
        raise UserError(
            f"{type(self).__name__} takes images of one shape; set augment.patch=None, or take a ViT with a "
            "position_grid."
        )

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, C]`` -> logits float32 ``[B, num_classes]``; ``train`` needs the rng "dropout"."""
        found = self.features(image, train=train)
        return self.classify(found) if self.num_classes else found.pooled

    @nn.compact
    def features(self, image: jax.Array, *, train: bool = False) -> Features:
        """float32 ``[B, H, W, C]`` -> :class:`Features`."""
        if isinstance(image, Patches):
            self.check_patches()
        found = scales.features(functools.partial(self.encode, train=train), image, self.scales, self._prefix())
        return found._replace(pooled=found.pooled.astype(jnp.float32))

    def embed_image(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, C]`` -> float32 ``[B, D]``, which is the pooled features."""
        return self.features(image, train=train).pooled

    def inputs(self, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of one image of ``size`` pixels as the model takes it, float32[1,S,S,3]."""
        return (jax.ShapeDtypeStruct((1, size, size, 3), "float32"),)

    def _prefix(self) -> int:
        """Tokens before those of the grid."""
        return 0

    def classify(self, found: Features) -> jax.Array:
        """Logits float32 ``[B, num_classes]`` of the features."""
        return self.to_classes("head", found.pooled)

    @nn.compact
    def to_classes(self, name: str, x: jax.Array) -> jax.Array:
        """float32 ``[B, D]`` -> ``[B, num_classes]`` by the linear map ``name``."""
        bias = nn.initializers.constant(self.head_bias_init)
        fields: dict[str, Any] = {"kernel_init": nn.initializers.zeros, "bias_init": bias, "name": name}
        return Linear(self.num_classes, ("embed", "classes"), **fields)(x)


class ImageTextModel(Model):
    """Images and texts to one space; a subclass has the fields ``image_tower`` and ``text_tower``."""

    def embed_image(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, 3]`` -> float32 ``[B, E]`` of unit length."""
        raise NotImplementedError

    def embed_text(self, text: jax.Array, *, train: bool = False) -> jax.Array:
        """int32 ``[B, L]`` -> float32 ``[B, E]`` of unit length."""
        raise NotImplementedError

    def scalars(self) -> tuple[jax.Array, jax.Array]:
        """Inverse temperature and bias of the logits, float32 ``[]``."""
        raise NotImplementedError

    @property
    def output_activation(self) -> OutputActivation:
        """How the logits of weights become probabilities whose training is not known."""
        raise NotImplementedError


class Captioner(abc.ABC):
    """What else a model has that writes captions."""

    @property
    @abc.abstractmethod
    def caption_length(self) -> int:
        """Most tokens of a caption, start and end included."""

    @abc.abstractmethod
    def encode(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """float32 ``[B, H, W, 3]`` -> embedding float32 ``[B, E]`` and the decoder's memory ``[B, M, E]``."""

    @abc.abstractmethod
    def next_logits(self, tokens: jax.Array, memory: jax.Array, *, start: jax.Array | int, length: int) -> jax.Array:
        """Logits float32 ``[B, N, V]`` of the tokens after ``tokens`` int32 ``[B, N]``, which are at ``start`` on.

        Keys and values of what came before are in the collection "cache", those of the memory in "memory": apply with
        ``mutable=["cache", "memory"]`` and ``start=0`` first, then with what came back and ``mutable=["cache"]``.
        Nothing but the new tokens is computed. The cache may have W rows for each row of the memory, one after the
        other: captions of one image.

        Args:
          tokens: int32 ``[B, N]``; ``[B * W, N]`` after the first call.
          memory: from :meth:`encode`; read by the first call.
          start: position of the first of ``tokens``; may be traced.
          length: most tokens of a caption and its end, static; less than :attr:`caption_length`.
        """

    @abc.abstractmethod
    def decoding_params(self, params: Params) -> Params:
        """``params`` with what each token is computed with in its compute type; the logits are the same bit for bit."""


class Doubled(NamedTuple):
    """Features made of smaller images, and what they are to be.

    Attributes:
      found: each ``[B, 2h, 2w, D]``.
      wanted: likewise, of images of twice the side, without a gradient.
      small: ``[B, h, w, D]`` that each was made of.
    """

    found: tuple[jax.Array, ...]
    wanted: tuple[jax.Array, ...]
    small: tuple[jax.Array, ...]


class Upsampler(abc.ABC):
    """What else a model has that makes features of more rows and columns."""

    @abc.abstractmethod
    def doubled(self, image: jax.Array, *, train: bool = False) -> Doubled:
        """float32 ``[B, H, W, 3]`` -> features of it and of smaller ones of it."""


@flax.struct.dataclass
class Variables:
    """Parameters together with the model's other collections: what stands for ``params`` where a model has such.

    Attributes:
      params: the parameters.
      others: collection -> its variables: batch statistics, calibrated ranges.
    """

    params: Params
    others: Mapping[str, Any]


TRANSIENT = ("intermediates", "features", "activity", "perturbations", "cache", "memory", "levels", "reconstruction")
"""Collections that record what one forward pass did; all others but the parameters are the model's and kept."""


def split_variables(variables: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
    """What ``model.init`` returns, as the parameters and the other collections that the model keeps."""
    kept = {k: v for k, v in variables.items() if k not in ("params", *TRANSIENT) and jax.tree.leaves(v)}
    return variables["params"], kept


def abstract_init(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Shapes of what ``model.init`` returns for ``inputs`` (example inputs or shapes), logical axis names boxed in.

    Nothing is computed. An equal model is traced once, which takes a second where it is large.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    try:
        hash(model)
    except TypeError:  # a field of somebody's own module
        return _traced_init.__wrapped__(model, shapes)
    return jax.tree.map(lambda x: x, _traced_init(model, shapes))  # containers of the caller's own


@functools.lru_cache(maxsize=64)
def _traced_init(model: Any, inputs: tuple[Any, ...]) -> Any:
    return jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFn:
    """A model as a function of its parameters.

    Attributes:
      model: unbound module.
      variables: its other collections, where ``params`` does not bring them; training changes them.
    """

    model: nn.Module
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Params | Variables, *inputs: Any, **options: Any) -> Any:
        """``model.apply`` with these parameters and its own options ``train``, ``rngs``, ``method``, ``mutable``."""
        others = self.variables
        if isinstance(params, Variables):
            params, others = params.params, params.others
        return self.model.apply({"params": params, **others}, *inputs, **options)


def replace_in_towers(model: nn.Module, **fields: Any) -> nn.Module:
    """``model`` with ``fields`` set wherever it or a module among its fields has them: ``dtype="float32"``."""
    values = trees.fields(model)
    inner: dict[str, Any] = {k: replace_in_towers(v, **fields) for k, v in values.items() if isinstance(v, nn.Module)}
    changes: dict[str, Any] = inner | {k: v for k, v in fields.items() if k in values}
    return model.clone(**changes)


def needs_barriers(model: nn.Module) -> bool:
    """Whether ``model``, or a module among its fields, recomputes, rounds what it saves, or runs blocks as a loop."""
    values = trees.fields(model)
    here = any(values.get(k, v) != v for k, v in PLAIN[Layered].items())
    return here or any(needs_barriers(v) for v in values.values() if isinstance(v, nn.Module))


PLAIN: dict[type, dict[str, Any]] = {
    Layered: {"scan": False, "remat": "none", "saved": "float"},
    TransformerStack: {"attention": "xla"},
    **{spec: {"implementation": "xla"} for spec in (Monarch, BlockDiagonal, BlockSparse, Packed24, Int8)},
}
"""Fields that change who computes and not what, as they are for any platform."""


def portable(value: Any) -> Any:
    """A model, or a part of one, that computes the same without kernels of a platform, block by block."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    values = trees.fields(value)
    changes: dict[str, Any] = {k: portable(v) for k, v in values.items()}
    for kind in PLAIN:
        changes |= PLAIN[kind] if isinstance(value, kind) else {}
    changes = {k: v for k, v in changes.items() if v is not values[k]}
    if not changes:
        return value
    return value.clone(**changes) if isinstance(value, nn.Module) else dataclasses.replace(value, **changes)


def cast_kernels(model: Model, params: Params) -> Params:
    """Parameters for inference: the kernels of blocks in the compute type, once, instead of in every forward pass.

    The result of ``apply`` is the same bit for bit, as kernels are rounded to that type anyway; norms, biases,
    embeddings and head stay float32.
    """

    def one(leaf: jax.Array, role: Role) -> jax.Array:
        return leaf.astype(model.dtype) if (role.part, role.kind) == ("block", "kernel") else leaf

    return jax.tree.map(one, params, model.roles(params))
