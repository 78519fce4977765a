"""The definition of the block-diagonal product in float64 NumPy: what every implementation is held against."""

from __future__ import annotations

import numpy as np


def product(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``y[row, k * out + o] = sum_i x[row, k * in + i] kernel[k, i, o] + bias[k * out + o]``."""
    n, size, features = kernel.shape
    y = np.zeros((len(x), n * features)) if bias is None else np.tile(np.asarray(bias, np.float64), (len(x), 1))
    for k in range(n):
        for i in range(size):
            column = np.asarray(x[:, k * size + i], np.float64)
            y[:, k * features : (k + 1) * features] += np.outer(column, np.asarray(kernel[k, i], np.float64))
    return y


def gradients(x: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * product)``, ``g [rows, n * out]``, with respect to x, kernel and bias."""
    n, size, features = kernel.shape
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for k in range(n):
        own = np.asarray(g[:, k * features : (k + 1) * features], np.float64)
        for i in range(size):
            dx[:, k * size + i] = own @ np.asarray(kernel[k, i], np.float64)
            dkernel[k, i] = np.asarray(x[:, k * size + i], np.float64) @ own
    return dx, dkernel, np.asarray(g, np.float64).sum(0)
