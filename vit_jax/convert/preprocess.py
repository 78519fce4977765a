"""How an image becomes a model's input, and what of that other projects can say."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import config
from vit_jax.augment import NORMS, Augment
from vit_jax.data.framing import CENTER, Filter, Framed, Framing, Mode, Rounding
from vit_jax.data.image import MAX_PIXELS, decode
from vit_jax.data.sources.base import Record, read_image
from vit_jax.types import Array

Image = str | pathlib.Path | bytes | np.ndarray
"""A file, encoded bytes or uint8[H,W,C]."""
RGB = tuple[float, float, float]
DEVICE_FILTERS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image to a model's input.

    Without a ``canvas``, in one step as other projects do: resized with ``interpolation`` to ``floor(size / crop)``
    pixels, cut to ``size``, normalised. With one, in two, as runs do it: the host frames the image on the canvas, the
    device resamples ``crop`` of that to ``size``.

    Example:
      >>> preprocess("cat.jpg").shape, preprocess(["cat.jpg", "dog.jpg"]).shape
      ((224, 224, 3), (2, 224, 224, 3))

    Attributes:
      size: side of the input in pixels.
      crop: fraction that is kept of the resized image's side, or of the canvas'.
      interpolation: filter of the resizing, or of the resampling on the device.
      mean: subtracted from each channel of an image in [0, 1].
      std: what each channel is then divided by.
      canvas: side of the square that the host makes for the device to resample; None where it makes the input itself.
      frame: how the host makes a square of an image; without a canvas, ``edge`` and ``interpolation`` follow from
        ``crop`` and ``interpolation`` above. With ``mode="patches"`` images keep their own shape, and the model gets
        :class:`vit_jax.types.Patches`.
    """

    size: int
    crop: float = 1.0
    interpolation: Filter = "bilinear"
    mean: RGB = (0.5, 0.5, 0.5)
    std: RGB = (0.5, 0.5, 0.5)
    canvas: int | None = None
    frame: Framing = Framing(rounding="torchvision")

    @property
    def host_canvas(self) -> int:
        """Side of the square that the host makes of an image."""
        return self.canvas or self.size

    @property
    def host_frame(self) -> Framing:
        """How the host makes it."""
        if self.canvas is not None:
            return self.frame
        edge = math.floor((self.size + self.frame.rest) / self.crop)
        return dataclasses.replace(self.frame, edge=edge, interpolation=self.interpolation)

    def __call__(self, images: Image | Sequence[Image]) -> Any:
        """What the model takes of one image, or of several.

        Args:
          images: a file, encoded bytes or uint8[H,W,C]; a list of these, or uint8[B,H,W,C], for a batch.

        Returns:
          float32[S,S,3], of several float32[B,S,S,3]; S is ``size``. Of patches :class:`vit_jax.types.Patches`.

        Raises:
          UserError: one is no readable image.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            return _prepare(self, stacked([self.read(x) for x in images]))
        return jax.tree.map(lambda x: x[0], _prepare(self, stacked([self.read(images)])))

    def read(self, image: Image | Record, max_pixels: int = MAX_PIXELS) -> np.ndarray | Framed:
        """A file, encoded bytes, uint8[H,W,C] or a source's record as uint8[K,K,3], K being :attr:`host_canvas`.

        With its size where its patches lie on it. ``max_pixels`` is what an image may have, see
        :func:`vit_jax.data.image.decode`.

        Raises:
          UserError: it is no readable image.
        """
        if not isinstance(image, dict):
            name = str(image) if isinstance(image, str | pathlib.Path) else "image"
            image = {
                "image": read_image(name) if isinstance(image, str | pathlib.Path) else image,
                "label": 0,
                "name": name,
            }
        canvas, size = decode(image, self.host_canvas, self.host_frame, max_pixels)
        return Framed(canvas, np.array(size, np.int32)) if self.frame.mode == "patches" else canvas

    def prepare(self, canvases: Array | Framed) -> Any:
        """uint8[B,K,K,3], K being :attr:`host_canvas` -> float32[B,S,S,3] as the model takes it; traceable.

        :class:`vit_jax.data.framing.Framed`, B of them -> :class:`vit_jax.types.Patches`.
        """
        batch = canvases._asdict() if isinstance(canvases, Framed) else {"image": canvases}
        return config.parse(Augment, self.augment()).eval_fn()(batch)["image"]

    def augment(self) -> dict[str, Any]:
        """What the device does, as plain data: the ``augment`` section of a training configuration."""
        known = {n: row().mean + row().std for n, row in NORMS.items() if n != "norm"}
        names = [name for name, values in known.items() if np.allclose(values, self.mean + self.std, atol=1e-7)]
        norm: Any = names[0] if names else {"name": "norm", "mean": self.mean, "std": self.std}
        crop, filtered = (self.crop, self.interpolation) if self.canvas else (1.0, self.interpolation)
        filtered = filtered if filtered in DEVICE_FILTERS else "bicubic"  # in one step there is nothing left to filter
        patch = {"patch": self.frame.patch} if self.frame.mode == "patches" else {}
        return {"size": self.size, "crop": crop, "interpolation": filtered, "norm": norm, **patch}

    def data(self) -> dict[str, Any]:
        """What the host does, as plain data: the keys of a training configuration's ``data`` section."""
        return {"canvas": self.host_canvas, "frame": dataclasses.asdict(self.host_frame)}

    @classmethod
    def of(cls, augment: Augment, canvas: int, frame: Framing = CENTER) -> Preprocess:
        """What a run evaluates with: inverse of :meth:`augment` and :meth:`data`."""
        norm = (augment.norm.mean, augment.norm.std)
        if frame.edge is None or augment.crop != 1 or augment.size != canvas:
            return cls(augment.size, augment.crop, augment.interpolation, *norm, canvas, frame)
        crop = fraction(canvas + frame.rest, frame.edge)
        rest = dataclasses.replace(frame, edge=None, interpolation=Framing.interpolation)
        return cls(augment.size, crop, frame.interpolation, *norm, None, rest)

    @property
    def single(self) -> Preprocess:
        """The same in one step or, where a second resampling forbids that, the nearest to it."""
        if self.canvas is None:
            return self
        frame = dataclasses.replace(self.frame, edge=None, interpolation=Framing.interpolation)
        if not self.resampled:
            crop = fraction(self.size + frame.rest, self.frame.edge or self.canvas)
            return dataclasses.replace(
                self, crop=crop, interpolation=self.frame.interpolation, canvas=None, frame=frame
            )
        return dataclasses.replace(self, canvas=None, frame=frame)

    @property
    def resampled(self) -> bool:
        """Whether the device resamples what the host has resized."""
        return self.canvas is not None and (
            abs(self.crop * self.canvas - self.size) > 1e-3 or (self.canvas - self.size) % 2 == 1
        )


def fraction(side: int, edge: int) -> float:
    """The crop by which ``floor(side / crop)`` is ``edge``: their quotient if it is short, else one that is."""
    exact = side / edge
    short = (round(exact - half * 10**-digits, digits) for digits in range(1, 8) for half in (0, 0.5))
    tried = (exact, *short) if round(exact, 4) == exact else (*short, exact)
    return next((x for x in tried if x > 0 and math.floor(side / x) == edge), math.nextafter(exact, 0))


def said(
    preprocess: Preprocess,
    title: str,
    rounding: Rounding,
    *,
    modes: Collection[Mode],
    filters: Collection[str],
) -> tuple[Preprocess, list[str]]:
    """``preprocess`` as a project that resizes once can say it, and one note for each thing that it does otherwise.

    Args:
      preprocess: of the model that is written.
      title: of the project.
      rounding: its own way.
      modes: what its files can say.
      filters: those that it has.
    """
    single, notes = preprocess.single, []
    if preprocess.resampled:
        notes.append(
            f"{title} cannot say that images become {preprocess.canvas} pixels before {preprocess.crop:g} of them is "
            f"resampled to {preprocess.size}: it resizes once"
        )
    frame = single.frame
    if frame.mode not in modes:
        notes.append(f"{title} cannot say that images are fitted by '{frame.mode}': it cuts the centre square out")
        frame = dataclasses.replace(frame, mode="center")
    if single.interpolation not in filters:
        notes.append(f"{title} has no filter {single.interpolation!r}: bicubic instead")
        single = dataclasses.replace(single, interpolation="bicubic")
    if frame.rounding != rounding:
        if frame.mode != "squash":
            notes.append(f"{title} may cut images that are not square half a pixel beside, as it rounds otherwise")
        frame = dataclasses.replace(frame, rounding=rounding)
    return dataclasses.replace(single, frame=frame), notes


def stacked(canvases: Sequence[np.ndarray | Framed]) -> Any:
    """Several of what :meth:`Preprocess.read` gives as one batch."""
    return jax.tree.map(lambda *rows: np.stack(rows), *canvases)


@functools.partial(jax.jit, static_argnums=0)
def _prepare(preprocess: Preprocess, canvases: Array | Framed) -> Any:
    return preprocess.prepare(canvases)
