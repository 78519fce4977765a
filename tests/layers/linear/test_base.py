"""That all products follow the rule, and the seam of linear specs; the rule itself is tested with the kernels."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.layers.linear.base import Dense, Linear, matmul, xavier_uniform_parts


def products(fn, *args):
    """Operand and result types of every matrix product in the jaxpr of ``fn``, nested ones included."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.append((*(str(v.aval.dtype) for v in eqn.invars), str(eqn.outvars[0].aval.dtype)))
            for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(sub, "eqns"):
                    walk(sub)
                elif hasattr(sub, "jaxpr"):
                    walk(sub.jaxpr)

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def test_no_bias_and_half_precision_kernel(rng):
    x = jnp.asarray(rng.standard_normal((3, 4)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((4, 2)), jnp.bfloat16)
    y, pull = jax.vjp(matmul, x, w)
    assert y.dtype == jnp.bfloat16
    assert pull(jnp.ones_like(y))[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, matmul(x, w.astype(jnp.float32)))


def test_every_product_follows_the_rule():
    x, w, b = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5)), jnp.ones(5)
    found = products(jax.grad(lambda *a: jnp.sum(matmul(*a).astype(jnp.float32)), (0, 1, 2)), x, w, b)
    assert found == [("bfloat16", "bfloat16", "float32")] * 3


def test_vmap_and_remat(rng):
    x, w = (
        jnp.asarray(rng.standard_normal((3, 5, 4)), jnp.float32),
        jnp.asarray(rng.standard_normal((4, 2)), jnp.float32),
    )
    np.testing.assert_allclose(jax.vmap(matmul, (0, None))(x, w), matmul(x, w), rtol=1e-6)
    loss = lambda w: jnp.sum(jnp.square(matmul(x, w)))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(w), jax.grad(loss)(w))


class Two(nn.Module):
    linear: object

    @nn.compact
    def __call__(self, x):
        x = self.linear(6, name="first", axes=("embed", "mlp"), dtype="bfloat16")(x)
        return self.linear(3, name="second", axes=("mlp", "embed"), use_bias=False)(x)


def test_a_spec_builds_named_layers_with_logical_axes():
    boxed = Two(Dense()).init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert {k: sorted(v) for k, v in boxed.items()} == {"first": ["bias", "kernel"], "second": ["kernel"]}
    assert boxed["first"]["kernel"].names == ("embed", "mlp")
    assert boxed["first"]["bias"].names == ("mlp",)
    params = nn.meta.unbox(boxed)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert Two(Dense()).apply({"params": params}, jnp.ones((2, 4))).dtype == jnp.float32


def test_dense_round_trip_and_equality(rng):
    spec = Dense()
    params = jax.jit(Linear(3).init)(jax.random.key(1), jnp.ones((1, 4)))["params"]
    for p in (nn.meta.unbox(params), {"kernel": jnp.ones((4, 3))}):
        kernel, bias = spec.to_dense(p)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), spec.from_dense(kernel, bias), p))
    assert spec == Dense() and hash(spec) == hash(Dense())


def test_xavier_parts_is_the_limit_of_each_part():
    kernel = xavier_uniform_parts(3)(jax.random.key(0), (64, 192))
    limit = (6 / 128) ** 0.5
    assert 0.98 * limit < float(jnp.max(jnp.abs(kernel))) <= limit
