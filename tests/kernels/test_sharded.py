"""Rows divided among devices by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.kernels.sharded import mesh, rows, shard_rows


def eight(replica=2, fsdp=2, tensor=2):
    return jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(replica, fsdp, tensor)))


def program(x, w):
    return (x @ w, x.shape[0] * jnp.ones(x.shape)), (jnp.sum(x, 0),)


@pytest.mark.parametrize("count", [8, 5, 1])
def test_rows_are_divided_and_sums_added(rng, count):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((count, 3), (3, 2)))
    with eight():
        (y, local), (total,) = jax.jit(lambda x, w: shard_rows(program, (x,), (w,)))(x, w)
    assert y.shape == (count, 2)
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, x.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(local, -(-count // 4))


def test_one_device_runs_the_program_itself(rng):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((5, 3), (3, 2)))
    (y, local), _ = shard_rows(program, (x,), (w,))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(local, 5)


def test_several_arrays_of_rows_and_trees(rng):
    x, g, w = (rng.standard_normal(s).astype("float32") for s in ((6, 3), (6, 2), (2,)))

    def outer(x, g, tree):
        return (), {"sum": x.T @ (g * tree["scale"][None])}

    with eight():
        arrays, sums = jax.jit(lambda *a: shard_rows(outer, a[:2], ({"scale": a[2]},)))(x, g, w)
    assert arrays == ()
    np.testing.assert_allclose(sums["sum"], x.T @ (g * w[None]), rtol=1e-5, atol=1e-6)


def test_rows_of_a_device_are_rounded_up():
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((8, 3, 64), (3, 3, 64), (64,), (0, 64))]
    assert [rows(x) for x in shapes] == [24, 9, 1, 0] and mesh() is None
    with eight():
        assert [rows(x) for x in shapes] == [6, 3, 1, 0] and mesh().size == 8


def test_where_the_rows_are_divided_already_nobody_divides_them_again(rng):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((8, 3), (3, 2)))

    def inner(x, w):
        assert mesh() is None and rows(x) == 2
        return shard_rows(program, (x,), (w,))[0]

    with eight():
        here = jax.sharding.get_abstract_mesh()
        specs = {"in_specs": (P(sharding.BATCH), P()), "out_specs": P(sharding.BATCH)}
        y, local = jax.jit(jax.shard_map(inner, mesh=here, **specs, check_vma=False))(x, w)
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(local, 2)
