"""``digits``: the 1,797 real 8x8 scans of handwritten digits bundled with scikit-learn (Alpaydin and Kaynak, 1998)."""

from __future__ import annotations

import numpy as np

from vit_jax.data.sources.base import Info, Record, Source, digest, take_split
from vit_jax.types import UserError

HELD_OUT, SEED = 360, 0


class Digits:
    """All scans in the file's order; uint8[8, 8, 3], the sixteen grey levels spread over 0..255."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # a second to import, and only this source needs it

        data = load_digits()
        self.images = np.repeat(np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)
        self.labels = data.target.astype(np.int32)
        self.info = Info(tuple(map(str, range(10))), len(self.labels), digest=digest(self.images, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Record:
        return {"image": self.images[i], "label": int(self.labels[i]), "name": f"digits[{i}]"}


def open_digits(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """1,437 scans to train on or the 360 held out; always the same ones, whatever ``holdout`` and ``seed`` say."""
    del holdout, seed
    if rest:
        raise UserError(f"source 'digits:{rest}' takes no path; write 'digits'.")
    digits = Digits()
    return take_split(digits, digits.labels, split, HELD_OUT, SEED, "digits")
