"""TopK and the product after it in float64 NumPy, token by token: what every implementation is held against."""

from __future__ import annotations

import numpy as np


def topk(z: np.ndarray, k: int) -> np.ndarray:
    """``[rows, F]``: of the units' positive parts the k largest of each row, of equal ones the first; else 0."""
    h = np.zeros(z.shape)
    for row, kept in zip(np.maximum(np.asarray(z, np.float64), 0), h, strict=True):
        order = sorted(range(len(row)), key=lambda f: (-row[f], f))[:k]
        kept[order] = row[order]
    return h


def product(h: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``[rows, F] -> [rows, D]``, from the units that are not 0 alone."""
    y = np.zeros((len(h), kernel.shape[1])) if bias is None else np.tile(np.asarray(bias, np.float64), (len(h), 1))
    for row, total in zip(np.asarray(h, np.float64), y, strict=True):
        for f in np.flatnonzero(row):
            total += row[f] * np.asarray(kernel[f], np.float64)
    return y


def gradients(h: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * product)``, ``g [rows, D]``, with respect to h (all units), kernel and bias."""
    h, kernel, g = (np.asarray(a, np.float64) for a in (h, kernel, g))
    return np.einsum("rd,fd->rf", g, kernel), np.einsum("rf,rd->fd", h, g), g.sum(0)
