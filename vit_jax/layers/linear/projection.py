"""The nearest structured matrix of a dense one, in closed form, on the host in float64.

A product of Monarch factors ``kernel_1 [k, (t l), p]`` and ``kernel_2 [l, s, (k t)]`` is, in the orientation of a dense
kernel (``kernels.monarch.to_dense``),

    W[(k p), (s l)] = sum_t kernel_1[k, t l, p] kernel_2[l, s, k t],

for each (k, l) a matrix ``[p, s]`` of rank t that shares its factors with no other. So the best product in the
Frobenius norm is k * l truncated SVDs (Monarch, arXiv:2204.00595, Theorem 1 and Algorithm 1, where t = 1; the rank-t
form is that of the layers they train). Rows and columns of zeros stay such in an SVD: padding costs no accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vit_jax.types import Array, UserError

Shape = tuple[int, int, int]


class Factors(NamedTuple):
    """``kernel_1 [k, q, p]``, ``kernel_2 [l, s, r]`` and ``|W - product| / |W|`` in the Frobenius norm."""

    kernel_1: np.ndarray
    kernel_2: np.ndarray
    error: float


def factor_shapes(inputs: int, features: int, nblocks: int) -> tuple[Shape, Shape]:
    """Shapes ``(k, q, p)`` and ``(l, s, r)`` of the factors of a map ``inputs -> features``, k = l = ``nblocks``.

    Blocks have p inputs and s outputs, rounded up; in between there are q = min(p, s) per block, as in the public
    layer. ``nblocks`` has to divide q, otherwise the (k, l) blocks of the product would be of unequal ranks.

    Raises:
      UserError: it does not.
    """
    p, s = -(-inputs // nblocks), -(-features // nblocks)
    q = min(p, s)
    if q % nblocks == 0:
        return (nblocks, q, p), (nblocks, s, q)
    fits = [n for n in range(2, q * nblocks + 1) if min(-(-inputs // n), -(-features // n)) % n == 0]
    near = [max((n for n in fits if n < nblocks), default=0), min((n for n in fits if n > nblocks), default=0)]
    remedy = " or ".join(f"nblocks={n}" for n in near if n)
    raise UserError(
        f"nblocks={nblocks} does not divide the {q} rows of a block of the map {inputs} -> {features}; "
        f"{f'the nearest that does is {remedy}' if remedy else 'no number of blocks does: keep this map dense'}."
    )


def project(kernel: Array, nblocks: int) -> Factors:
    """The Monarch factors whose product is nearest to ``kernel [in, out]``, real or complex.

    Both carry the square root of the singular values, so neither is favoured by weight decay or by Adam.

    Returns:
      :class:`Factors` in float32 (complex64), of :func:`factor_shapes`.

    Raises:
      UserError: ``nblocks`` does not fit the sizes.
    """
    matrix, n = _wide(kernel), nblocks
    inputs, features = matrix.shape
    first, second = factor_shapes(inputs, features, n)
    (_, q, p), (_, s, _) = first, second
    padded = np.pad(matrix, [(0, n * p - inputs), (0, n * s - features)])
    left, right, lost = truncate(padded.reshape(n, p, s, n).transpose(0, 3, 1, 2), q // n)  # [k l p t], [k l t s]
    error = np.linalg.norm(lost) / max(np.linalg.norm(matrix), np.finfo(np.float64).tiny)
    return Factors(left.transpose(0, 3, 1, 2).reshape(first), right.transpose(1, 3, 0, 2).reshape(second), float(error))


def truncate(matrices: Array, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best approximations of ``rank``: ``[..., a, b] -> [..., a, rank], [..., rank, b]``, discarded singular values.

    The factors are rounded to float32 (complex64); each has the square root of the singular values.
    """
    u, d, v = np.linalg.svd(_wide(matrices), full_matrices=False)
    root = np.sqrt(d[..., :rank])
    narrow = np.complex64 if np.iscomplexobj(u) else np.float32
    left, right = u[..., :rank] * root[..., None, :], root[..., None] * v[..., :rank, :]
    return left.astype(narrow), right.astype(narrow), d[..., rank:]


def _wide(x: Array) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
