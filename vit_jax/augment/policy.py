"""The augmentation of a run: which operations, the output size, evaluation crop and normalisation.

Everything runs on the device inside ``jit``. An example's randomness is a function of (key, its ``index``) alone:
operation ``i`` of example ``n`` uses ``fold_in(fold_in(key, n), i)``, so an image does not depend on the number of
devices, on the batch size or on its place in the batch. Mixing pairs neighbouring rows of the batch (``mix.py``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.augment.base import ImageOp, MixOp, unit
from vit_jax.augment.color import ColorJitter, RandomErasing
from vit_jax.augment.geometry import (
    CenterCrop,
    Crop,
    CropResize,
    Flip,
    InceptionCrop,
    Interpolation,
    RandomCrop,
    Resize,
    center_box,
    resample,
)
from vit_jax.augment.mix import Cutmix, Mixup, choose, soft
from vit_jax.augment.randaugment import RandAugment
from vit_jax.augment.warp import Affine
from vit_jax.checks import Checked, Pixels, Range
from vit_jax.config import Choice, Variant
from vit_jax.types import Batch, PRNGKey, UserError

OPS: dict[str, Any] = {
    "inception_crop": InceptionCrop,
    "resize": Resize,
    "center_crop": CenterCrop,
    "random_crop": RandomCrop,
    "flip": Flip,
    "affine": Affine,
    "color_jitter": ColorJitter,
    "randaugment": RandAugment,
    "random_erasing": RandomErasing,
    "mixup": Mixup,
    "cutmix": Cutmix,
}


Mean = Annotated[float, Range(-1e3, 1e3)]
Std = Annotated[float, Range(1e-3, 1e3, hint=", as images are divided by it")]


@dataclasses.dataclass(frozen=True)
class Norm(Checked):
    """Per-channel ``(image - mean) / std`` of images in [0, 1].

    Attributes:
      mean: subtracted from each channel of an image in [0, 1].
      std: what each channel is then divided by.
    """

    mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    std: tuple[Std, Std, Std] = (0.5, 0.5, 0.5)

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32[...,3] in [0, 1] -> float32[...,3]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scale, offset = 1 / std, -mean / std
        return images * jnp.broadcast_to(scale, images.shape) + jnp.broadcast_to(offset, images.shape)


NORMS: dict[str, Any] = {
    "norm": Norm,
    "inception": Variant(Norm, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
    "imagenet": Variant(Norm, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
    "clip": Variant(Norm, {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}),
}
"""Statistics that published weights were trained with; ``"norm(mean=(...), std=(...))"`` sets one's own."""


@dataclasses.dataclass(frozen=True)
class Augment(Checked):
    """Device-side image pipeline of a run.

    Attributes:
      size: side of the square the model sees, in pixels.
      train: operations in order: at most one :class:`CropResize` first (needed unless the canvas has the output size),
        then image operations, then mixing.
      crop: side of the central crop in evaluation, as a fraction of the canvas' side (the canvas is the image's centre
        square).
      norm: normalisation, one of :data:`NORMS`.
      interpolation: filter of every crop and resize.
    """

    size: Pixels
    train: tuple[Annotated[ImageOp | MixOp | CropResize, Choice(OPS, ImageOp | MixOp | CropResize)], ...] = (
        InceptionCrop(),
        Flip(),
    )
    crop: Crop = 1.0
    norm: Annotated[Norm, Choice(NORMS, Norm)] = Norm()
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [0 if isinstance(op, CropResize) else 2 if isinstance(op, MixOp) else 1 for op in self.train]
        if kinds != sorted(kinds) or kinds.count(0) > 1:
            names = ", ".join(type(op).__name__ for op in self.train)
            raise UserError(
                f"train=({names}) is out of order; write at most one crop or resize first, then image operations, then"
                " mixing."
            )

    @property
    def mixes(self) -> tuple[MixOp, ...]:
        """The operations that blend examples; with any, labels become soft."""
        return tuple(op for op in self.train if isinstance(op, MixOp))

    def check(self, canvas: int) -> None:
        """Raises :class:`UserError` where the host's canvas (pixels) cannot become ``size`` in training."""
        if canvas != self.size and not (self.train and isinstance(self.train[0], CropResize)):
            raise UserError(
                f"the canvas has {canvas} px and the model takes {self.size} px, but no operation in train resizes;"
                " put inception_crop, random_crop, center_crop or resize first, or set data.canvas to the size."
            )

    def train_fn(self, num_classes: int) -> Callable[[PRNGKey, Batch], dict[str, Any]]:
        """Pure, traceable ``f(key, batch) -> batch`` for a step; ``key`` should differ between steps.

        Reads ``image`` uint8[B,S,S,3], ``size``, ``index``, ``label`` and ``mask``; replaces ``image`` by normalised
        float32[B,size,size,3] and, with mixing, ``label`` by float32[B,num_classes].

        Raises:
          UserError: mixing without classes; a canvas that does not fit (when traced).
        """
        if self.mixes and num_classes < 1:
            raise UserError(
                f"{type(self.mixes[0]).__name__} needs the number of classes, but num_classes={num_classes}."
            )

        def apply(key: PRNGKey, batch: Any) -> dict[str, Any]:
            self.check(batch["image"].shape[1])
            # Threefry whatever the default: other generators give vmapped keys bits that depend on the batch.
            data = jax.random.bits(key, (2, 2), jnp.uint32)
            example_key, mix_key = (jax.random.wrap_key_data(d, impl="threefry2x32") for d in data)
            one = functools.partial(self._example, example_key)
            images, labels = jax.vmap(one)(batch["image"], batch["size"], batch["index"]), batch["label"]
            if self.mixes:
                images, labels = choose(self.mixes, mix_key, images, soft(labels, num_classes), batch["mask"])
            return {**batch, "image": self.norm(images), "label": labels}

        return apply

    def _example(self, key: PRNGKey, image: jax.Array, original: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, index)
        for i, op in enumerate(self.train):
            op_key = jax.random.fold_in(key, i)
            if isinstance(op, CropResize):
                image = op(op_key, image, original, self.size, self.interpolation)
            elif isinstance(op, ImageOp):
                image = op(op_key, unit(image))
        return unit(image)

    def eval_fn(self) -> Callable[[Batch], dict[str, Any]]:
        """Pure ``f(batch) -> batch``: centre crop and resize as one resampling, then normalisation; labels stay."""

        def apply(batch: Any) -> dict[str, Any]:
            box = center_box(batch["image"].shape[1], self.crop)
            images = jax.vmap(lambda x: resample(x, box, self.size, self.interpolation))(batch["image"])
            return {**batch, "image": self.norm(images)}

        return apply
