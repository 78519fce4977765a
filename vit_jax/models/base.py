"""What every image model returns and shares."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.linear import Linear
from vit_jax.models.roles import Model, Role
from vit_jax.types import Params


class Features(NamedTuple):
    """What a model knows about a batch of images.

    Attributes:
      tokens: ``[B, N, D]`` after the last norm, in the compute type: cls (if any), registers, the grid row by row.
      pooled: float32 ``[B, D]``, what the head sees.
    """

    tokens: jax.Array
    pooled: jax.Array


class ImageModel(Model):
    """Images to features to logits; a subclass writes :meth:`encode`.

    Attributes:
      num_classes: outputs of the head; 0 for no head, the logits are then the pooled features.
      head_bias_init: initial bias of the head (a large negative one for sigmoid losses).
    """

    num_classes: int = 1000
    head_bias_init: float = 0.0

    def encode(self, image: jax.Array, train: bool) -> Features:
        raise NotImplementedError

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, C]`` -> logits float32 ``[B, num_classes]``; ``train`` needs the rng "dropout"."""
        return self._run(image, train)[1]

    def features(self, image: jax.Array, *, train: bool = False) -> Features:
        """float32 ``[B, H, W, C]`` -> :class:`Features`."""
        return self._run(image, train)[0]

    def image_encoder(self, params: Params) -> tuple[Self, Params]:
        """The model of images alone in this one, and its parameters: here itself."""
        return self, params

    def inputs(self, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of one image of ``size`` pixels as the model takes it, float32[1,S,S,3]."""
        return (jax.ShapeDtypeStruct((1, size, size, 3), "float32"),)

    @nn.compact
    def _run(self, image: jax.Array, train: bool) -> tuple[Features, jax.Array]:
        found = self.encode(image, train)
        found = Features(found.tokens, found.pooled.astype(jnp.float32))
        if not self.num_classes:
            return found, found.pooled
        head = Linear(
            self.num_classes,
            ("embed", "classes"),
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.head_bias_init),
            name="head",
        )
        return found, head(found.pooled)


def replace_in_towers(model: nn.Module, **fields: Any) -> nn.Module:
    """``model`` with ``fields`` set wherever it or a module among its fields has them: ``dtype="float32"``."""
    values: dict[str, Any] = {
        f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name")
    }
    inner: dict[str, Any] = {k: replace_in_towers(v, **fields) for k, v in values.items() if isinstance(v, nn.Module)}
    changes: dict[str, Any] = inner | {k: v for k, v in fields.items() if k in values}
    return model.clone(**changes)


def cast_kernels(model: Model, params: Params) -> Params:
    """Parameters for inference: the kernels of blocks in the compute type, once, instead of in every forward pass.

    The result of ``apply`` is the same bit for bit, as kernels are rounded to that type anyway; norms, biases,
    embeddings and head stay float32.
    """

    def one(leaf: jax.Array, role: Role) -> jax.Array:
        return leaf.astype(model.dtype) if (role.part, role.kind) == ("block", "kernel") else leaf

    return jax.tree.map(one, params, model.roles(params))
