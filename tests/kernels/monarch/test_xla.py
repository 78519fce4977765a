"""Unrolled and batched forms agree, and every product follows the rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.monarch import reference, xla

OPTIONS = [(1, False), (2, True)]


def draw(rng, dtype):
    x, kernel_1, kernel_2, bias = (rng.standard_normal(s).astype("float32") for s in ((7, 8), (2, 6, 4), (3, 5, 4), 15))
    return jnp.asarray(x, dtype), kernel_1, kernel_2, bias


@pytest.mark.parametrize(("parts", "blocked"), OPTIONS)
def test_many_blocks_run_batched_with_equal_gradients(rng, monkeypatch, parts, blocked):
    args = draw(rng, "float32")
    g = jnp.asarray(rng.standard_normal((7, 15)), jnp.float32)

    def both(g, *args):
        y, pull = jax.vjp(functools.partial(xla.run, input_parts=parts, blocked=blocked), *args)
        return y, *pull(g)

    few = jax.jit(both)(g, *args)
    monkeypatch.setattr(xla, "UNROLLED", 2)
    many, *gradients = jax.jit(lambda *args: both(*args))(g, *args)
    for a, b in zip((many, *gradients), few, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    x = np.concatenate([np.asarray(args[0]).reshape(7, parts, -1)[:, j, :, None] for j in range(parts)], -1)
    want = reference.product(x.reshape(7, 8), *args[1:])
    np.testing.assert_allclose(many, reference.to_parts(want, 3 if blocked else 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unrolled", [2, 16])
@pytest.mark.parametrize(("parts", "blocked"), OPTIONS)
def test_products_take_low_operands_and_sum_in_float32(rng, monkeypatch, unrolled, parts, blocked):
    monkeypatch.setattr(xla, "UNROLLED", unrolled)

    def loss(*args):
        return jnp.sum(xla.run(*args, input_parts=parts, blocked=blocked).astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(*draw(rng, "bfloat16"))
    found = [e for e in flat(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert len(found) == (15 if unrolled == 16 else 6)
    for e in found:
        assert [str(v.aval.dtype) for v in (*e.invars, *e.outvars)] == ["bfloat16", "bfloat16", "float32"]


def test_more_than_sixteen_blocks(rng):
    kernel_1, kernel_2 = (rng.standard_normal(s).astype("float32") for s in ((18, 18, 2), (18, 2, 18)))
    x = rng.standard_normal((3, 36)).astype("float32")
    text = str(jax.make_jaxpr(functools.partial(xla.run, input_parts=1, blocked=False))(x, kernel_1, kernel_2, None))
    assert text.count("dot_general") == 2
    y = jax.jit(functools.partial(xla.run, input_parts=1, blocked=False))(x, kernel_1, kernel_2, None)
    np.testing.assert_allclose(y, reference.product(x, kernel_1, kernel_2), rtol=1e-4, atol=1e-4)


def flat(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for sub in jax.tree.leaves(list(e.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                yield from flat(getattr(sub, "jaxpr", sub))
