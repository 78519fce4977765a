"""``fake:N[xSIZE[xCLASSES]]``: made-up images that a model can learn, for smoke tests and benchmarks."""

from __future__ import annotations

import re

import numpy as np

from vit_jax.data.permute import make_key
from vit_jax.data.sources.base import MAX_CLASSES, Info, Record, Source, take_split
from vit_jax.types import UserError

MAX_EXAMPLES, MAX_SIZE = 2**24, 2**12
_WAVE = np.rint(64 + 63 * np.sin(np.arange(256) * (2 * np.pi / 256))).astype(np.uint8)


class Fake:
    """Image i shows its class ``i % classes`` as direction and width of stripes, under noise; a pure function of i."""

    def __init__(self, n: int, size: int = 32, classes: int = 10):
        self.n, self.size, self.classes = n, size, classes
        self.info = Info(tuple(map(str, range(classes))), n)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < self.n:
            raise IndexError(i)
        label, size = i % self.classes, self.size
        noise = np.random.Philox(key=make_key(i)).random_raw(-(-size * size * 3 // 8)).view(np.uint8)
        angle = np.pi * label / self.classes
        period = 256 * (2 + label % 3) / size
        ramp = np.arange(size) * period
        phase = np.rint(ramp[:, None] * np.sin(angle) + ramp * np.cos(angle) + noise[0]).astype(np.int64)
        image = _WAVE[phase & 255][..., None] + (noise[: size * size * 3].reshape(size, size, 3) >> 1)
        return {"image": image, "label": label, "name": f"fake[{i}]"}


def open_fake(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """Parses ``N[xSIZE[xCLASSES]]``; SIZE is 32 pixels and CLASSES 10 unless given."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?(?:x([1-9]\d*))?", rest)
    if not match:
        raise UserError(f"'fake:{rest}' cannot be read; write fake:EXAMPLES, fake:EXAMPLESxSIZE or fake:1000x32x10.")
    limits = {"examples": (match[1], 2**24), "pixels": (match[2], 4096), "classes": (match[3], MAX_CLASSES)}
    for what, (digits, most) in limits.items():
        if digits and (len(digits) > 10 or int(digits) > most):
            raise UserError(f"'fake:{rest:.60}' has more {what} than {most:,}; made-up images need no more.")
    source = Fake(*(int(g) for g in match.groups() if g))
    if source.classes > source.n:
        raise UserError(f"'fake:{rest}' has more classes ({source.classes}) than examples ({source.n}).")
    labels = np.arange(source.n, dtype=np.int64) % source.classes
    return take_split(source, labels, split, holdout, seed, f"fake:{rest}")
