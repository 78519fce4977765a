"""A small logistic regression in JAX (float32) and in NumPy (float64, closed-form gradient), with padded examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

D, C, B = 5, 3, 12


def loss(params: Any, x: Any, y: Any, mask: Any) -> Any:
    h = x * params["norm"]["scale"][None]
    logits = h @ params["head"]["kernel"] + params["head"]["bias"][None]
    each = -jnp.sum(y * jax.nn.log_softmax(logits), axis=-1)
    return jnp.sum(each * mask) / jnp.maximum(jnp.sum(mask), 1.0)


@dataclasses.dataclass
class JaxGrad:
    """The contract's ``grad_fn``; ``calls`` counts how often it was traced."""

    x: Any
    y: Any
    mask: Any
    calls: int = 0

    def __call__(self, params: Any) -> Any:
        self.calls += 1
        return jax.grad(loss)(params, self.x, self.y, self.mask)

    def over_groups(self, body: Any, m: int) -> Any:
        parts = jax.tree.map(lambda a: a.reshape(-1, m, *a.shape[1:]), (self.x, self.y, self.mask))
        weights = jnp.sum(parts[2], axis=1)
        results = jax.lax.map(lambda part: body(JaxGrad(*part)), parts)
        return jax.tree.map(lambda r: jnp.tensordot(weights, r, axes=1) / jnp.sum(weights), results)


@dataclasses.dataclass
class NumpyGrad:
    """The same as a function of one float64 vector: kernel, bias, scale."""

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray

    def __call__(self, w: np.ndarray) -> np.ndarray:
        kernel, bias, scale = np.split(w, [D * C, D * C + C])
        kernel = kernel.reshape(D, C)
        logits = (self.x * scale) @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        delta = (p - self.y) * self.mask[:, None] / max(self.mask.sum(), 1)
        return np.concatenate(
            [((self.x * scale).T @ delta).ravel(), delta.sum(0), (self.x * (delta @ kernel.T)).sum(0)]
        )

    def groups(self, m: int) -> list[tuple[NumpyGrad, float]]:
        slices = [slice(i, i + m) for i in range(0, B, m)]
        return [(NumpyGrad(self.x[s], self.y[s], self.mask[s]), self.mask[s].sum() / self.mask.sum()) for s in slices]


@dataclasses.dataclass
class Problem:
    """One batch with a different number of valid examples in each group of four, and start parameters."""

    grad: JaxGrad
    numpy: NumpyGrad
    params: Any

    @staticmethod
    def flat(params: Any) -> np.ndarray:
        leaves = params["head"]["kernel"], params["head"]["bias"], params["norm"]["scale"]
        return np.concatenate([np.asarray(a, np.float64).ravel() for a in leaves])


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """Logistic regression on 12 examples, three of them padding."""
    x = rng.normal(size=(B, D))
    y = np.eye(C)[rng.integers(0, C, B)]
    mask = np.ones(B)
    mask[[3, 6, 7]] = 0
    params = {
        "head": {"kernel": rng.normal(size=(D, C)), "bias": rng.normal(size=C)},
        "norm": {"scale": 1 + 0.1 * rng.normal(size=D)},
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    return Problem(JaxGrad(*(jnp.asarray(a, jnp.float32) for a in (x, y, mask))), NumpyGrad(x, y, mask), params)
