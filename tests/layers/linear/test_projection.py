"""The analytic projection: exact where it can be, at the singular value bound elsewhere, never beaten by iteration."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.linear.projection import factor_shapes, project, truncate
from vit_jax.types import UserError

SHAPES = [(24, 24, 2), (36, 36, 3), (16, 48, 4), (48, 16, 4), (25, 35, 3), (35, 25, 3), (7, 11, 2), (64, 64, 8)]


def forward(kernel_1, kernel_2, x):
    """The published map, written as published: two batched products and two permutations, float64 or complex."""
    (k, q, p), (l, s, r) = kernel_1.shape, kernel_2.shape  # noqa: E741
    y = np.einsum("kqp,bkp->bkq", kernel_1, x.reshape(-1, k, p)).reshape(-1, k * q)
    z = y.reshape(-1, r, l).transpose(0, 2, 1)
    return np.einsum("lsr,blr->bsl", kernel_2, z).reshape(-1, s * l)


def multiplied(kernel_1, kernel_2):
    wide = (np.asarray(a).astype(np.complex128 if np.iscomplexobj(a) else np.float64) for a in (kernel_1, kernel_2))
    return forward(*wide, np.eye(kernel_1.shape[0] * kernel_1.shape[2]))


def distance(kernel, factors):
    inputs, features = kernel.shape
    return np.linalg.norm(kernel - multiplied(factors.kernel_1, factors.kernel_2)[:inputs, :features])


def discarded(kernel, nblocks):
    """Singular values past the rank of each (input block, output residue), one submatrix at a time; no padding."""
    (_, q, p), _ = factor_shapes(*kernel.shape, nblocks)
    blocks = [kernel[k * p : (k + 1) * p, l::nblocks] for k in range(nblocks) for l in range(nblocks)]  # noqa: E741
    return np.concatenate([np.linalg.svd(b, compute_uv=False)[q // nblocks :] for b in blocks])


def hadamard(n):
    return np.ones((1, 1)) if n == 1 else np.kron([[1, 1], [1, -1]], hadamard(n // 2))


def circulant(c):
    return np.stack([np.roll(c, i) for i in range(len(c))])


def bit_reversed(n):
    bits = n.bit_length() - 1
    return np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)])


def monarch_matrices(rng):
    c = rng.standard_normal
    block, scales = c((8, 8)), c((8, 8))
    circulant_of_blocks = np.block([[block * scales[(s - k) % 8] for s in range(8)] for k in range(8)])
    dft = np.exp(-2j * np.pi * np.outer(np.arange(64), np.arange(64)) / 64)
    yield from ((hadamard(64), n) for n in (2, 4, 8))
    yield from ((np.kron(circulant(c(8)), circulant(c(8))), n) for n in (2, 4, 8))
    yield circulant_of_blocks, 8
    yield dft[bit_reversed(64)], 8
    for inputs, features, n in SHAPES:
        first, second = factor_shapes(inputs, features, n)
        yield multiplied(c(first), c(second))[:inputs, :features], n
        yield multiplied(c(first) + 1j * c(first), c(second) + 1j * c(second))[:inputs, :features], n


def test_monarch_matrices_come_back(rng):
    for kernel, nblocks in monarch_matrices(rng):
        factors = project(kernel, nblocks)
        assert (factors.kernel_1.shape, factors.kernel_2.shape) == factor_shapes(*kernel.shape, nblocks)
        assert factors.kernel_1.dtype == (np.complex64 if np.iscomplexobj(kernel) else np.float32)
        assert distance(kernel, factors) < 1e-6 * np.linalg.norm(kernel)
        assert factors.error < 1e-12


def test_the_fourier_matrix_itself_is_none(rng):
    dft = np.exp(-2j * np.pi * np.outer(np.arange(64), np.arange(64)) / 64)
    np.testing.assert_allclose(project(dft, 8).error, np.sqrt(7 / 8), rtol=1e-6)  # 8 equal singular values, 1 kept


@pytest.mark.parametrize(("inputs", "features", "nblocks"), SHAPES)
def test_the_error_is_the_discarded_singular_values(rng, inputs, features, nblocks):
    kernel = rng.standard_normal((inputs, features))
    factors = project(kernel, nblocks)
    lost = discarded(kernel, nblocks)
    np.testing.assert_allclose(distance(kernel, factors) ** 2, np.sum(lost**2), rtol=1e-5)
    np.testing.assert_allclose(factors.error, np.linalg.norm(lost) / np.linalg.norm(kernel), rtol=1e-9)
    assert 0.1 < factors.error < 1
    norms = [float(np.linalg.norm(f)) for f in factors[:2]]
    np.testing.assert_allclose(*norms, rtol=1e-5)  # balanced


@pytest.mark.first(1)
@pytest.mark.parametrize(("inputs", "features", "nblocks"), [(8, 8, 2), (12, 8, 2), (8, 12, 2), (7, 8, 2)])
def test_alternating_least_squares_never_does_better(rng, inputs, features, nblocks):
    """100 random starts, each factor in turn the least-squares solution given the other."""
    kernel = rng.standard_normal((inputs, features))
    first, second = factor_shapes(inputs, features, nblocks)
    unit_1, unit_2 = (np.eye(int(np.prod(s))).reshape(-1, *s) for s in (first, second))

    def solve(fixed, units, swap):
        columns = [multiplied(*((u, fixed) if swap else (fixed, u)))[:inputs, :features].ravel() for u in units]
        design = np.stack(columns, 1)
        solution, *_ = np.linalg.lstsq(design, kernel.ravel(), rcond=None)
        return solution.reshape(units.shape[1:]), np.linalg.norm(design @ solution - kernel.ravel())

    best = np.inf
    for _ in range(100):
        kernel_1 = rng.standard_normal(first)
        for _ in range(4):
            kernel_2, _ = solve(kernel_1, unit_2, False)
            kernel_1, error = solve(kernel_2, unit_1, True)
        best = min(best, error)
    analytic = distance(kernel, project(kernel, nblocks))
    assert analytic <= best * (1 + 1e-6)
    assert best < 1.2 * analytic  # the search was a search


def test_zero_and_half_precision(rng):
    assert project(np.zeros((8, 8), np.float32), 2).error == 0.0
    kernel = jnp.asarray(rng.standard_normal((8, 8)), jnp.bfloat16)
    np.testing.assert_array_equal(project(kernel, 2).kernel_1, project(np.asarray(kernel, np.float64), 2).kernel_1)


def test_truncate_is_batched_and_balanced(rng):
    matrices = rng.standard_normal((3, 2, 5, 7))
    left, right, lost = truncate(matrices, 2)
    assert left.shape == (3, 2, 5, 2) and right.shape == (3, 2, 2, 7) and lost.shape == (3, 2, 3)
    np.testing.assert_allclose(np.sum((matrices - left @ right) ** 2, (-1, -2)), np.sum(lost**2, -1), rtol=1e-5)
    np.testing.assert_allclose(np.sum(left**2, (-1, -2)), np.sum(right**2, (-1, -2)), rtol=1e-5)


def test_sizes_of_the_public_layer_and_what_is_refused():
    assert factor_shapes(768, 3072, 4) == ((4, 192, 192), (4, 768, 192))
    assert factor_shapes(3072, 768, 4) == ((4, 192, 768), (4, 192, 192))
    assert factor_shapes(768, 1000, 4) == ((4, 192, 192), (4, 250, 192))
    with pytest.raises(
        UserError, match=r"nblocks=4 does not divide the 49 rows .* 196 -> 384; .* nblocks=3 or nblocks=5"
    ):
        factor_shapes(196, 384, 4)
    with pytest.raises(UserError, match=r"nblocks=2 does not divide the 5 rows"):
        factor_shapes(24, 10, 2)
    with pytest.raises(UserError, match="no number of blocks does: keep this map dense"):
        factor_shapes(10, 10, 4)
