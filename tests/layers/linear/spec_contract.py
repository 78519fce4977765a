"""What every linear spec must do, whatever its parameters: to be the dense map that ``to_dense`` says it is."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def initialise(spec: Any, inputs: int, features: int, **kwargs: Any) -> tuple[Any, Any]:
    """A layer and its unboxed parameters, with a bias that is not zero."""
    layer = spec(features, name="map", bias_init=nn.initializers.normal(1.0), **kwargs)
    return layer, nn.meta.unbox(jax.jit(layer.init)(jax.random.key(3), jnp.ones((1, inputs)))["params"])


def close(got: Any, want: Any, dtype: str) -> None:
    want = np.asarray(want, np.float64)
    scale = float(np.max(np.abs(want)))
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE[dtype] * scale)


def check_layer(spec: Any, rng: np.random.Generator, shape: tuple[int, ...], features: int, dtype: str) -> None:
    """Value and gradients against the dense map, types, jit, vmap and abstract initialisation."""
    inputs = shape[-1]
    layer, params = initialise(spec, inputs, features, dtype=dtype)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    g = jnp.asarray(rng.standard_normal((*shape[:-1], features)), dtype)

    def apply(params, x):
        return layer.apply({"params": params}, x)

    def dense(params, x):
        kernel, bias = spec.to_dense(params)
        y = jnp.matmul(x, kernel[:inputs, :features], precision="highest")
        return y + jnp.broadcast_to(bias, y.shape)

    @jax.jit
    def run(params, x, g):
        y, pull = jax.vjp(apply, params, x)
        _, pull_dense = jax.vjp(dense, params, x.astype(jnp.float32))
        return (
            y,
            jax.vmap(apply, (None, 0))(params, x),
            pull(g),
            pull_dense(g.astype(jnp.float32)),
            spec.to_dense(params),
        )

    y, mapped, (dparams, dx), (wide_dparams, wide_dx), (kernel, bias) = run(params, x, g)
    assert y.dtype == dx.dtype == x.dtype and y.shape == g.shape and kernel.shape[1] == features
    assert jax.eval_shape(apply, params, x.astype(jnp.float32)).dtype == dtype
    kernel, bias = np.asarray(kernel, np.float64)[:inputs, :features], np.asarray(bias, np.float64)
    close(y, np.asarray(x, np.float64) @ kernel + bias, dtype)
    close(mapped, y, dtype)
    close(dx, wide_dx, dtype)
    assert set(dparams) == set(params)
    for name, leaf in dparams.items():
        assert leaf.dtype == jnp.float32
        close(leaf, wide_dparams[name], dtype)
    boxed = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda a: a.shape, nn.meta.unbox(boxed)) == jax.tree.map(lambda a: a.shape, params)
    assert boxed["bias"].names == ("mlp",)


def check_no_bias(spec: Any, inputs: int, features: int) -> None:
    layer, params = initialise(spec, inputs, features, use_bias=False)
    kernel, bias = jax.jit(spec.to_dense)(params)
    assert bias is None and "bias" not in params and set(spec.from_dense(kernel, None)) == set(params)
    close(jax.jit(layer.apply)({"params": params}, jnp.eye(inputs)), kernel[:inputs, :features], "float32")


def check_variance(spec: Any, inputs: int, features: int, kernel_init: Any, seeds: int = 1500) -> None:
    """An output has the variance that it has in the dense map, each of them, and over all of them accurately."""

    def draw(key):
        layer = spec(features, name="map", kernel_init=kernel_init, use_bias=False)
        params = nn.meta.unbox(layer.init(key, jnp.ones((1, inputs)))["params"])
        return jnp.sum(jnp.square(spec.to_dense(params)[0][:inputs, :features]), 0)

    got = jnp.mean(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), seeds)), 0)
    draws = jax.jit(jax.vmap(lambda key: jnp.sum(jnp.square(kernel_init(key, (inputs, features))), 0)))
    ratio = np.asarray(got) / np.asarray(jnp.mean(draws(jax.random.split(jax.random.key(6), seeds)), 0))
    np.testing.assert_allclose(ratio, 1, atol=0.15)
    np.testing.assert_allclose(np.mean(ratio), 1, atol=0.03)
