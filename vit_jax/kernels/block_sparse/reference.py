"""The block-sparse product in float64, one block after the other, from the definition alone."""

from __future__ import annotations

import numpy as np


def dense(kernel: np.ndarray, index: np.ndarray, inputs: int) -> np.ndarray:
    """``kernel [per, b, out]``, ``index [out_blocks, per]`` -> the weight ``[inputs, out]``."""
    per, b, out = kernel.shape
    weight = np.zeros((inputs, out))
    for j in range(out // b):
        for t in range(per):
            i = int(index[j, t])
            weight[i * b : (i + 1) * b, j * b : (j + 1) * b] += kernel[t, :, j * b : (j + 1) * b].astype(np.float64)
    return weight


def product(x: np.ndarray, kernel: np.ndarray, index: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``x [rows, in]`` -> ``[rows, out]``."""
    y = x.astype(np.float64) @ dense(kernel, index, x.shape[1])
    return y if bias is None else y + bias


def gradients(
    x: np.ndarray, kernel: np.ndarray, index: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * product)``, ``g [rows, out]``, with respect to x, kernel and bias."""
    per, b, out = kernel.shape
    whole, d = x.astype(np.float64).T @ g, np.zeros(kernel.shape)
    for j in range(out // b):
        for t in range(per):
            i = int(index[j, t])
            d[t, :, j * b : (j + 1) * b] = whole[i * b : (i + 1) * b, j * b : (j + 1) * b]
    return g @ dense(kernel, index, x.shape[1]).T, d, g.sum(0)
