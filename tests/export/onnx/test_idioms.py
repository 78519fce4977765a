"""Softmax, layer norm and GELU are recognised, and nothing that only looks like them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.export.onnx.idioms import spoken
from vit_jax.export.onnx.trace import trace, used
from vit_jax.kernels.layer_norm import xla
from vit_jax.layers.mlp import ACTIVATIONS

SCALE = np.linspace(1, 2, 4, dtype=np.float32)


def layer_norm(x, epsilon=1e-6):
    return xla.run(x, SCALE, SCALE, epsilon)[1]


def names(run):
    traced = trace(lambda _, x: run(x), {}, (3, 4), np.float32)
    return [e.name for e in used(spoken(traced.equations), traced.output)]


def test_they_are_one_word():
    assert names(lambda x: jax.nn.softmax(x, axis=-1)) == ["softmax"]
    assert names(layer_norm) == ["layer_norm"]
    assert names(ACTIVATIONS["gelu"]) == ["gelu"]


def test_the_epsilon_is_taken():
    traced = trace(lambda _, x: layer_norm(x, 1e-3), {}, (3, 4), np.float32)
    (norm,) = used(spoken(traced.equations), traced.output)
    assert norm.params == {"epsilon": pytest.approx(1e-3)}
    assert [v.shape[-1] for v in norm.inputs] == [4, 4, 4]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: jax.nn.softmax(x, axis=1),
        lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
        lambda x: 0.5 * x * (1.0 + jax.lax.erf(x)),
        lambda x: 0.5 * x * (2.0 + jax.lax.erf(x * 0.5**0.5)),
        lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6),
        lambda x: layer_norm(x) * 2.0 + x,
    ],
)
def test_what_only_looks_like_one_is_left(run):
    with jax.numpy_rank_promotion("allow"):
        found = names(run)
    assert "softmax" not in found and "gelu" not in found and len(found) > 2
