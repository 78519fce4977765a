"""The float64 loop, worked out by hand, and its gradients against differences."""

import numpy as np

from vit_jax.kernels.selective_scan import reference


def test_two_tokens_by_hand():
    x, delta = np.array([[[2.0], [3.0]]]), np.array([[[1.0], [2.0]]])
    a, b, c, d = np.log([[0.5, 0.25]]), np.ones((1, 2, 2)), np.array([[[1.0, 0.0], [1.0, 2.0]]]), np.array([10.0])
    # states 2, 2; then 2 / 4 + 6, 2 / 16 + 6
    np.testing.assert_allclose(reference.states(x, delta, a, b)[0, :, 0], [[0, 0], [2, 2], [6.5, 6.125]])
    np.testing.assert_allclose(reference.scan(x, delta, a, b, c, d), [[[2 + 20], [6.5 + 12.25 + 30]]])


def test_gradients_are_those_of_differences(rng):
    shapes = (2, 3, 4), (2, 3, 4), (4, 5), (2, 3, 5), (2, 3, 5), (4,)
    args, g = [rng.uniform(-1, 1, s) for s in shapes], rng.standard_normal((2, 3, 4))
    for i, found in enumerate(reference.gradients(*args, g)):
        direction, step = rng.standard_normal(shapes[i]), 1e-5
        sides = [reference.scan(*args[:i], args[i] + sign * step * direction, *args[i + 1 :]) for sign in (1, -1)]
        np.testing.assert_allclose(np.sum(found * direction), np.sum(g * (sides[0] - sides[1])) / (2 * step), rtol=1e-7)
