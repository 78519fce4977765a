"""An image tower and a text tower with one embedding space: CLIP, SigLIP, LiT (and CLOOB, which is a loss)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import INFINITE, Finite, Range, Size
from vit_jax.layers.linear import Linear, logical
from vit_jax.layers.norm import unit
from vit_jax.models.base import Features, ImageModel, ImageTextModel
from vit_jax.models.images import IMAGES
from vit_jax.models.roles import Kind, Model, Part
from vit_jax.models.text import TextTransformer
from vit_jax.types import OutputActivation, UserError

Head = Literal["none", "linear", "biased"]
"""The map from a tower's pooled features to the embedding: the features as they are, without or with a bias."""


class Embedded(NamedTuple):
    """What an image-text model makes of a batch of pairs.

    Attributes:
      image: float32 ``[B, E]``, of unit length.
      text: float32 ``[B, E]``, of unit length.
      scale: float32 ``[]``, the inverse temperature, exp(``logit_scale``).
      bias: float32 ``[]``, ``logit_bias``; 0 where the model has none.
      hidden: ``[B, L, D]``, states of the caption decoder: position t predicts token t + 1; None without a decoder.
      vocabulary: ``[D, V]``, the map from those states to logits, or None.
      real: bool ``[B, L]``, the tokens that are no padding, or None.
    """

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    bias: jax.Array
    hidden: jax.Array | None = None
    vocabulary: jax.Array | None = None
    real: jax.Array | None = None


class TwoTower(ImageTextModel):
    """CLIP (Radford et al. 2021, arXiv:2103.00020) and its relatives.

    Attributes:
      image_tower: a row of ``models.IMAGES``; its own head is left out.
      text_tower: the text tower; its width, depth and the other fields of :class:`TextTransformer`.
      embed_dim: size E of the embeddings; with a head "none" it must be that tower's width.
      image_head: map from the image tower's pooled features to the embedding, one of :data:`Head`.
      text_head: map from the text tower's pooled features to the embedding, one of :data:`Head`.
      temperature: initial inverse temperature; the parameter ``logit_scale`` is its logarithm.
      bias: initial ``logit_bias`` of SigLIP (Zhai et al. 2023, arXiv:2303.15343), None for no such parameter.
      lock: a tower that is not trained (LiT, Zhai et al. 2022, arXiv:2111.07991): it runs in evaluation mode and gets
        no gradient; leave it out of the optimizer by ``optim.freeze`` as well.
    """

    image_tower: Annotated[ImageModel, config.Choice(IMAGES, ImageModel)]
    text_tower: TextTransformer
    embed_dim: Size = 512
    image_head: Head = "linear"
    text_head: Head = "linear"
    temperature: Annotated[float, Range(0, INFINITE, "()", "; 1 / 0.07 is usual, 10 for SigLIP")] = 1 / 0.07
    bias: Finite | None = None
    lock: Literal["none", "image", "text"] = "none"

    ENCODER: ClassVar[str | None] = "image_tower"
    PARTS: ClassVar[Mapping[str, Part]] = dict.fromkeys(
        ("image_head", "text_head", "logit_scale", "logit_bias"), "head"
    )
    KINDS: ClassVar[Mapping[str, Kind]] = {**Model.KINDS, "logit_scale": "scalar", "logit_bias": "scalar"}

    def __post_init__(self) -> None:
        if self.image_tower.num_classes:  # its own head would be parameters that nothing uses
            object.__setattr__(self, "image_tower", self.image_tower.clone(num_classes=0))
        super().__post_init__()

    def setup(self) -> None:
        heads = {"image": self.image_head, "text": self.text_head}
        maps = {k: self._head(k, kind) for k, kind in heads.items() if kind != "none"}
        self.image_map, self.text_map = maps.get("image"), maps.get("text")
        self.logit_scale = self._constant("logit_scale", math.log(self.temperature))
        if self.bias is not None:
            self.logit_bias = self._constant("logit_bias", self.bias)

    def __call__(self, image: jax.Array, text: jax.Array, *, train: bool = False) -> Embedded:
        """float32 ``[B, H, W, 3]`` and int32 ``[B, L]`` -> :class:`Embedded`; ``train`` needs the rng "dropout"."""
        return Embedded(self.embed_image(image, train=train), self.embed_text(text, train=train), *self.scalars())

    def embed_image(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, 3]`` -> float32 ``[B, E]`` of unit length."""
        return self.joint(self.image_features(image, train).pooled, "image")

    def embed_text(self, text: jax.Array, *, train: bool = False) -> jax.Array:
        """int32 ``[B, L]`` -> float32 ``[B, E]`` of unit length."""
        return self.joint(self.text_features(text, train).pooled, "text")

    def features(self, image: jax.Array, *, train: bool = False) -> Features:
        """The image tower's, before the head: what probes read (Radford et al. 2021, section 3.2)."""
        return self.image_features(image, train)

    def scalars(self) -> tuple[jax.Array, jax.Array]:
        """Inverse temperature and bias, float32 ``[]``."""
        return jnp.exp(self.logit_scale), self.logit_bias if self.bias is not None else jnp.zeros(())

    def image_features(self, image: jax.Array, train: bool) -> Features:
        """The image tower's, before the head."""
        locked = self.lock == "image"
        found = self.image_tower.features(image, train=train and not locked)
        return jax.lax.stop_gradient(found) if locked else found

    def text_features(self, text: jax.Array, train: bool) -> Features:
        """The text tower's, before the head."""
        locked = self.lock == "text"
        found = self.text_tower(text, train=train and not locked)
        return jax.lax.stop_gradient(found) if locked else found

    def joint(self, pooled: jax.Array, side: str) -> jax.Array:
        """Pooled features ``[B, D]`` of one side -> the embedding float32 ``[B, E]`` of unit length."""
        head = self.image_map if side == "image" else self.text_map
        x = (pooled if head is None else head(pooled)).astype(jnp.float32)
        if x.shape[-1] != self.embed_dim:
            raise UserError(
                f"the {side} tower gives {x.shape[-1]} features and embed_dim is {self.embed_dim}; "
                f"set {side}_head='linear', or embed_dim={x.shape[-1]}."
            )
        return unit(x)

    @property
    def output_activation(self) -> OutputActivation:
        """Sigmoid of each pair with a learned bias, as SigLIP has it; else softmax over the texts, as CLIP has it."""
        return "softmax" if self.bias is None else "sigmoid"

    def inputs(self, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of one pair for images of ``size`` pixels: float32[1,S,S,3] and int32[1,L]."""
        text = jax.ShapeDtypeStruct((1, self.text_tower.length), "int32")
        return jax.ShapeDtypeStruct((1, size, size, 3), "float32"), text

    @property
    def dtype(self) -> str:
        """Compute type of the image tower."""
        return self.image_tower.dtype

    def _constant(self, name: str, value: float) -> jax.Array:
        return self.param(name, logical(nn.initializers.constant(value), ()), ())

    def _head(self, side: str, kind: Head) -> Linear:
        config.lookup(dict.fromkeys(("none", "linear", "biased")), kind, f"{side}_head")
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return Linear(self.embed_dim, ("embed", None), use_bias=kind == "biased", kernel_init=init, name=f"{side}_head")
