"""Linear classifiers fitted to fixed features: multinomial logistic and ridge regression, their L2 penalty chosen.

All of it runs on the host in float64. Logistic regression holds several float64[N, C]; with a million examples and a
thousand classes ridge regression is the one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.types import UserError

L2 = tuple(10.0**p for p in range(1, -7, -1))
"""Penalties that are tried, the strongest first; features are scaled so that these suit all."""
MAX_ITERATIONS = 1000
"""Of L-BFGS, for each penalty."""


class Linear(NamedTuple):
    """logits = features @ kernel + bias."""

    kernel: np.ndarray
    """float64[D, C]"""
    bias: np.ndarray
    """float64[C]"""
    converged: bool = True
    """False where the search for it was cut short."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float[N, D] -> float64[N, C]."""
        return np.asarray(features, np.float64) @ self.kernel + self.bias


Path = Callable[[np.ndarray, np.ndarray, int, Sequence[float]], list[Linear]]
"""``(float64[N, D], int[N], C, penalties) -> one classifier per penalty``."""


def logistic(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: Sequence[float]) -> list[Linear]:
    """Minimises mean cross-entropy + l2 / 2 |kernel|^2 by L-BFGS, each penalty from the solution of the one before.

    The bias is not penalised. Arguments as :data:`Path`.
    """
    import scipy.optimize

    (n, d), rows = features.shape, np.arange(len(labels))

    def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        kernel, bias = np.split(flat, [d * num_classes])
        kernel = kernel.reshape(d, num_classes)
        z = features @ kernel + bias
        z -= z.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        value = -z[rows, labels].mean() + 0.5 * penalty * np.sum(kernel**2)
        slope = np.exp(z) / n
        slope[rows, labels] -= 1 / n
        return float(value), np.concatenate([(features.T @ slope + penalty * kernel).ravel(), slope.sum(0)])

    found, flat = [], np.zeros((d + 1) * num_classes)
    for penalty in l2:
        options = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": 1e-6, "ftol": 1e-12}
        end = scipy.optimize.minimize(loss, flat, (penalty,), method="L-BFGS-B", jac=True, options=options)
        flat, cut = end.x, end.status == 1
        found.append(Linear(flat[: d * num_classes].reshape(d, num_classes), flat[d * num_classes :], not cut))
    return found


def ridge(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: Sequence[float]) -> list[Linear]:
    """Minimises mean |features @ kernel + bias - one-hot|^2 + l2 |kernel|^2; one decomposition serves all penalties.

    The bias is not penalised. Arguments as :data:`Path`.
    """
    n, mean, share = len(labels), features.mean(0), np.bincount(labels, minlength=num_classes) / len(labels)
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / n)
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, centred)
    turned = vectors.T @ sums.T / n
    kernels = [vectors @ (turned / (np.maximum(values, 0) + penalty)[:, None]) for penalty in l2]
    return [Linear(kernel, share - mean @ kernel) for kernel in kernels]


HEADS: dict[str, Path] = {"logistic": logistic, "ridge": ridge}


class Fitted(NamedTuple):
    """A classifier and the penalty that it was fitted with."""

    classifier: Linear
    l2: float


def fit(
    features: np.ndarray, labels: np.ndarray, num_classes: int, path: Path = logistic, *, l2: Sequence[float] = L2,
    seed: int = 0,
) -> Fitted:  # fmt: skip
    """Fits a classifier; of the penalties the one is taken that does best on a held-out fifth, then all is fitted.

    Features are centred and divided by one number, their root mean square, so that turning, moving or scaling all of
    them changes no prediction. Where no class has two examples nothing can be held out: the middle penalty is taken.

    Args:
      features: float[N, D], finite.
      labels: int[N] in [0, C).
      num_classes: C.
      path: one of :data:`HEADS`.
      l2: penalties to try, the strongest first; of equally good ones the strongest is taken.
      seed: of what is held out.

    Returns:
      The classifier of features as they came.

    Raises:
      UserError: no features, or some that are not finite.
    """
    features = np.asarray(features, np.float64)
    if not len(features) or not np.isfinite(features).all():
        bad = int(np.sum(~np.isfinite(features).all(1)))
        raise UserError(f"a classifier cannot be fitted to {len(features)} examples, {bad} of them not finite.")
    mean = features.mean(0)
    scale = float(np.sqrt(np.mean((features - mean) ** 2))) or 1.0
    x = (features - mean) / scale
    held = hold_out(labels, seed)
    penalty = l2[len(l2) // 2]
    if held.any() and len(l2) > 1:
        tried = path(x[~held], labels[~held], num_classes, l2)
        right = [np.mean(one(x[held]).argmax(1) == labels[held]) for one in tried]
        penalty = l2[int(np.argmax(right))]
    (one,) = path(x, labels, num_classes, (penalty,))
    return Fitted(Linear(one.kernel / scale, one.bias - mean @ one.kernel / scale, one.converged), penalty)


def hold_out(labels: np.ndarray, seed: int, share: float = 0.2) -> np.ndarray:
    """bool[N]: a share of each class, rounded, at least one of two examples and never the only one."""
    place, size = places(labels, seed)
    return place < np.minimum(np.maximum(np.round(share * size), 1), size - 1)


def few_shot(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """``shots`` examples of each class: int64[shots * classes], in the order of the data; fewer are some of them.

    Raises:
      UserError: a class has fewer.
    """
    place, size = places(labels, seed)
    if len(labels) and size.min() < shots:
        least = int(labels[np.argmin(size)])
        raise UserError(f"shots={shots} is more than class {least} has; it has {size.min()} examples.")
    return np.flatnonzero(place < shots)


def places(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each example in a seeded shuffle of its class, int64[N], and the size of that class, int64[N]."""
    shuffle = np.random.default_rng(seed).permutation(len(labels))
    order = shuffle[np.argsort(labels[shuffle], kind="stable")]
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[inverse]
