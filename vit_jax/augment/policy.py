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
    Box,
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
from vit_jax.augment.patches import cut, resampled
from vit_jax.augment.randaugment import RandAugment
from vit_jax.augment.warp import Affine
from vit_jax.checks import Checked, Pixels, Range
from vit_jax.config import Choice, Variant
from vit_jax.types import Batch, Patches, PRNGKey, UserError

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
      patch: side of a patch where the model sees images in their own shape, as :class:`vit_jax.types.Patches`: at most
        (``size`` / ``patch``)^2 of each. A crop is resampled after the image operations then. Evaluation takes
        canvases of patches, ``data.frame.mode="patches"``. None: squares.
    """

    size: Pixels
    train: tuple[Annotated[ImageOp | MixOp | CropResize, Choice(OPS, ImageOp | MixOp | CropResize)], ...] = (
        InceptionCrop(),
        Flip(),
    )
    crop: Crop = 1.0
    norm: Annotated[Norm, Choice(NORMS, Norm)] = Norm()
    interpolation: Interpolation = "bilinear"
    patch: Pixels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [0 if isinstance(op, CropResize) else 2 if isinstance(op, MixOp) else 1 for op in self.train]
        if kinds != sorted(kinds) or kinds.count(0) > 1:
            names = ", ".join(type(op).__name__ for op in self.train)
            raise UserError(
                f"train=({names}) is out of order; write at most one crop or resize first, then image operations, then"
                " mixing."
            )
        if self.patch is not None:
            self._check_patches(self.patch)

    def _check_patches(self, patch: int) -> None:
        wrong = [type(op).__name__ for op in self.train if isinstance(op, MixOp | RandomCrop)]
        if self.size % patch:
            raise UserError(f"size={self.size} is no multiple of patch={patch}; images have (size / patch)^2 patches.")
        if wrong or self.crop != 1:
            what = f"{wrong[0]} is" if wrong else f"crop={self.crop:g} is"
            raise UserError(f"{what} for squares, and patch={patch} leaves images their own shape; take it out.")

    @property
    def most(self) -> int:
        """Patches of an image, with ``patch``."""
        return (self.size // (self.patch or self.size)) ** 2

    @property
    def mixes(self) -> tuple[MixOp, ...]:
        """The operations that blend examples; with any, labels become soft."""
        return tuple(op for op in self.train if isinstance(op, MixOp))

    def check(self, canvas: int) -> None:
        """Raises :class:`UserError` where the host's canvas (pixels) cannot become ``size`` in training."""
        if self.patch is None and canvas != self.size and not (self.train and isinstance(self.train[0], CropResize)):
            raise UserError(
                f"the canvas has {canvas} px and the model takes {self.size} px, but no operation in train resizes;"
                " put inception_crop, random_crop, center_crop or resize first, or set data.canvas to the size."
            )

    def train_fn(self, num_classes: int) -> Callable[[PRNGKey, Batch], dict[str, Any]]:
        """Pure, traceable ``f(key, batch) -> batch`` for a step; ``key`` should differ between steps.

        Reads ``image`` uint8[B,S,S,3], ``size``, ``index``, ``label`` and ``mask``; replaces ``image`` by normalised
        float32[B,size,size,3] (with ``patch``, by :class:`vit_jax.types.Patches`) and, with mixing, ``label`` by
        float32[B,num_classes].

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
            return {**batch, "image": self._normed(images), "label": labels}

        return apply

    def _example(self, key: PRNGKey, image: jax.Array, original: jax.Array, index: jax.Array) -> Any:
        key = jax.random.fold_in(key, index)
        box: Box = (0.0, 0.0, 1.0, 1.0)
        for i, op in enumerate(self.train):
            op_key = jax.random.fold_in(key, i)
            if isinstance(op, CropResize) and self.patch is not None:
                box = op.box(op_key, original)
            elif isinstance(op, CropResize):
                image = op(op_key, image, original, self.size, self.interpolation)
            elif isinstance(op, ImageOp):
                image = op(op_key, unit(image))
        if self.patch is not None:
            return resampled(image, box, original, self.patch, self.most, self.interpolation)
        return unit(image)

    def _normed(self, images: Any) -> Any:
        if not isinstance(images, Patches):
            return self.norm(images)
        pixels = images.pixels.reshape(*images.real.shape, -1, 3)
        pixels = jnp.where(images.real[..., None, None], self.norm(pixels), 0)
        return images._replace(pixels=pixels.reshape(images.pixels.shape))

    def eval_fn(self) -> Callable[[Batch], dict[str, Any]]:
        """Pure ``f(batch) -> batch``: centre crop and resize as one resampling, then normalisation; labels stay."""

        def apply(batch: Any) -> dict[str, Any]:
            if self.patch is not None:
                patches = cut(unit(batch["image"]), batch["size"], self.patch, self.most)
                return {**batch, "image": self._normed(patches)}
            box = center_box(batch["image"].shape[1], self.crop)
            images = jax.vmap(lambda x: resample(x, box, self.size, self.interpolation))(batch["image"])
            return {**batch, "image": self.norm(images)}

        return apply
