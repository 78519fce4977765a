"""The definition itself: the example of the docstring, the published index formulas, and finite differences."""

import numpy as np

from vit_jax.kernels.monarch import reference


def test_the_worked_example():
    kernel_1 = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    kernel_2 = np.array([[[1, 0], [2, 1]], [[0, 1], [1, 1]]])
    assert reference.product(np.array([[1, 0, 0, 1]]), kernel_1, kernel_2).tolist() == [[1, 8, 8, 11]]


def test_the_published_form_in_reshapes(rng):
    x, kernel_1, kernel_2 = (rng.standard_normal(s) for s in ((3, 8), (2, 6, 4), (3, 5, 4)))
    y1 = np.einsum("kqp,bkp->bkq", kernel_1, x.reshape(3, 2, 4)).reshape(3, 12)
    z = y1.reshape(3, 4, 3).transpose(0, 2, 1)
    y = np.einsum("lsr,blr->bsl", kernel_2, z).reshape(3, 15)
    np.testing.assert_allclose(reference.product(x, kernel_1, kernel_2, np.ones(15)), y + 1, rtol=1e-12)
    np.testing.assert_allclose(x @ reference.dense(kernel_1, kernel_2), y, rtol=1e-12)


def test_the_square_form_of_the_paper(rng):
    # M[l, j, k, i] = L[j, l, k] R[k, j, i] for n = m^2, rows (l, j), columns (k, i): section 3.2.
    R, L = rng.standard_normal((2, 3, 3, 3))
    M = np.einsum("jlk,kji->ljki", L, R).reshape(9, 9)
    np.testing.assert_allclose(reference.dense(R, L), M.T, rtol=1e-12)


def test_gradients_equal_finite_differences(rng):
    args = [rng.standard_normal(s) for s in ((3, 8), (2, 6, 4), (3, 5, 4), (15,))]
    g = rng.standard_normal((3, 15))
    for i, slope in enumerate(reference.gradients(*args[:3], g)):
        at = tuple(rng.integers(args[i].shape))
        up, down = ([a.copy() for a in args] for _ in range(2))
        up[i][at] += 1e-4
        down[i][at] -= 1e-4
        difference = np.sum(g * (reference.product(*up) - reference.product(*down))) / 2e-4
        np.testing.assert_allclose(slope[at], difference, rtol=1e-7)


def test_blocked_order():
    assert reference.to_parts(np.arange(6), 2).tolist() == [0, 2, 4, 1, 3, 5]
