"""What the peers share: other projects' own models, which conversions are compared with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.types import Patches


def torch_processor(process: Callable[[Any], Any]) -> Callable[[pathlib.Path], Any]:
    """A project's preparation of images as a function of a file.

    Args:
      process: PIL image, RGB -> tensor or array float32[3,H,W], or one image's :class:`vit_jax.types.Patches`.

    Returns:
      A file -> float32[H,W,3], or those patches.
    """

    def run(file: pathlib.Path) -> Any:
        with Image.open(file) as image:
            found = process(image.convert("RGB"))
        return found if isinstance(found, Patches) else np.asarray(found, np.float32).transpose(1, 2, 0)

    return run


def torch_peer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A PyTorch model as a function of NumPy arrays.

    Args:
      forward: images float32[B,3,H,W] (and texts int64[B,L]) -> a tensor, or several by name.

    Returns:
      The same of images float32[B,H,W,3] (and texts int32[B,L]) -> an array, or several by name. Images of unlike
      shapes, :class:`vit_jax.types.Patches`, stay such with tensors in them.
    """
    import torch

    def run(images: Any, *texts: np.ndarray) -> Any:
        if isinstance(images, Patches):
            pixels: Any = Patches(*(torch.from_numpy(np.array(x)) for x in images))
        else:
            pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            found = forward(pixels, *(torch.from_numpy(x.astype(np.int64)) for x in texts))
        return {name: x.numpy() for name, x in found.items()} if isinstance(found, dict) else found.numpy()

    return run
