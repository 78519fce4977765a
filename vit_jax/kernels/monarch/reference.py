"""The definition of the Monarch product in float64 NumPy, loop by loop: what every implementation is held against."""

from __future__ import annotations

import numpy as np


def product(x: np.ndarray, kernel_1: np.ndarray, kernel_2: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``[rows, n] -> [rows, l * s]``, input and output in natural order."""
    (K, q, p), (L, S, _) = kernel_1.shape, kernel_2.shape
    y1 = np.zeros((len(x), K * q))
    for k in range(K):
        for j in range(q):
            y1[:, k * q + j] = x[:, k * p : (k + 1) * p].astype(np.float64) @ kernel_1[k, j].astype(np.float64)
    y = np.zeros((len(x), L * S))
    for i in range(L):
        for s in range(S):
            y[:, s * L + i] = y1[:, i::L] @ kernel_2[i, s].astype(np.float64)
    return y if bias is None else y + bias


def dense(kernel_1: np.ndarray, kernel_2: np.ndarray) -> np.ndarray:
    """The weight ``[n, l * s]`` of the map."""
    return product(np.eye(kernel_1.shape[0] * kernel_1.shape[2]), kernel_1, kernel_2)


def gradients(
    x: np.ndarray, kernel_1: np.ndarray, kernel_2: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * product)``, ``g [rows, l * s]``, with respect to x, kernel_1, kernel_2 and bias.

    By the chain rule through the dense weight ``W[n, o]``: a factor's gradient is ``dW`` times the other factor.
    """
    (K, q, p), L = kernel_1.shape, len(kernel_2)
    dw = x.astype(np.float64).T @ g
    d1, d2 = np.zeros(kernel_1.shape), np.zeros(kernel_2.shape)
    for k in range(K):
        for j in range(q):
            c, i = divmod(k * q + j, L)  # output j of block k is input c of block i
            block = dw[k * p : (k + 1) * p, i::L]
            d1[k, j] = block @ kernel_2[i, :, c].astype(np.float64)
            d2[i, :, c] = kernel_1[k, j].astype(np.float64) @ block
    return g @ dense(kernel_1, kernel_2).T, d1, d2, g.sum(0)


def to_parts(x: np.ndarray, parts: int) -> np.ndarray:
    """Natural to blocked order of the last axis: ``i = a * parts + j`` goes to ``j * (n / parts) + a``."""
    return np.concatenate([x[..., j::parts] for j in range(parts)], -1)
