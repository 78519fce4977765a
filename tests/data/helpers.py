"""Writing small images and archives."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image


def encode(image: np.ndarray | Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth enough for JPEG, different in every pixel and channel."""
    coarse = rng.integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def write_shard(path: pathlib.Path, members: dict[str, bytes], format: int = tarfile.DEFAULT_FORMAT) -> str:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            add_member(archive, name, data)
    return str(path)
