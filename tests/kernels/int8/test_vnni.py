"""The product of bytes without a sign: the same integers, and where it is taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.int8 import vnni, xla
from vit_jax.kernels.int8.rounding import quantise

SHAPES = [((6,), 513, 10), ((2, 3), 37, 5), ((1,), 8, 1), ((), 3, 2), ((1, 4), 1, 9), ((9,), 130, 33)]


@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_the_integers_are_those_of_bytes_with_a_sign(rng, lead, inputs, outputs):
    """On any CPU: where it has no such instructions, XLA does without."""
    x, values = rng.integers(-127, 128, (*lead, inputs)), rng.integers(-127, 128, (inputs, outputs))
    x[..., 0], values[:, 0] = 127, -127
    args = jnp.asarray(x, jnp.bfloat16), jnp.asarray(values, jnp.int8), jnp.ones(outputs), None
    want = jnp.asarray(x @ values, jnp.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(vnni.run)(*args), want)


def test_values_and_gradients_are_those_of_xla(rng):
    x, g = (jnp.asarray(rng.standard_normal((2, 3, n)), jnp.float32) for n in (40, 6))
    values, scale = quantise(jnp.asarray(rng.standard_normal((40, 6)), jnp.float32), 0)
    bias = jnp.asarray(rng.standard_normal(6), jnp.float32)

    def both(run):
        y, pull = jax.vjp(lambda x, s, b: run(x, values, s, b), x, scale[0], bias)
        return y, *pull(g)

    for got, want in zip(*jax.jit(lambda: (both(vnni.run), both(xla.dynamic)))(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_where_it_is_taken(monkeypatch):
    shapes = [jax.ShapeDtypeStruct(*s) for s in (((3, 8), "float32"), ((8, 4), "int8"), ((4,), "float32"))]
    for flags, unsupported, slower in (
        (("avx2",), "this CPU has no AVX-512 VNNI", None),
        (("avx512_vnni",), None, None),
        (("avx512_vnni", "amx_int8"), None, "this CPU has AMX for bytes with signs"),
    ):
        monkeypatch.setattr(vnni, "instructions", lambda flags=flags: frozenset(flags))
        assert vnni.unsupported_reason(*shapes, None) == unsupported
        assert vnni.slower_reason(*shapes, None) == slower
    assert "may not fit into int32" in vnni.unsupported_reason(
        shapes[0], jax.ShapeDtypeStruct((66_312, 4), "int8"), shapes[2], None
    )
    assert vnni.IMPLEMENTATION.platform == "cpu"
    monkeypatch.undo()
    assert vnni.instructions() == frozenset() or "fpu" in vnni.instructions() or "fp" in vnni.instructions()
