"""Packing and product in float64, one group after the other, from the definitions alone."""

from __future__ import annotations

import itertools

import numpy as np


def mask(kernel: np.ndarray) -> np.ndarray:
    """Of the six patterns of every group the one that keeps most; ``[in, out] -> bool [in, out]``."""
    kept = np.zeros(kernel.shape, bool)
    for row, column in itertools.product(range(0, kernel.shape[0], 4), range(kernel.shape[1])):
        size = np.abs(kernel[row : row + 4, column])
        best = max(itertools.combinations(range(4), 2), key=lambda pair: float(size[list(pair)].sum()))
        kept[[row + place for place in best], column] = True
    return kept


def unpack(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``values [in/2, out]`` and ``index [ceil(in/8), out]`` -> float64 ``[in, out]``."""
    groups, half = values.shape[0] // 2, index.shape[0]
    kernel = np.zeros((4 * groups, values.shape[1]))
    for group, column in itertools.product(range(groups), range(values.shape[1])):
        bits = int(index[group % half, column]) >> (4 if group >= half else 0)
        kernel[4 * group + bits % 4, column] = values[group, column]
        kernel[4 * group + bits // 4 % 4, column] = values[groups + group, column]
    return kernel


def sparse24(
    x: np.ndarray,
    values: np.ndarray,
    index: np.ndarray,
    bias: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """``(x @ unpack(values, index)) * scale + bias`` in float64."""
    y = np.asarray(x, np.float64) @ unpack(np.asarray(values, np.float64), np.asarray(index))
    y = y if scale is None else y * np.asarray(scale, np.float64)
    return y if bias is None else y + np.asarray(bias, np.float64)
