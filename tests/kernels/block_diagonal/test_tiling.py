"""The layout of the kernel, with its steps taken in NumPy's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.block_diagonal import reference
from vit_jax.kernels.block_diagonal.tiling import lay_out, take_back, tiling
from vit_jax.kernels.windows import LANES, merged

SHAPES = {  # -> groups, inputs and outputs of a group, rows of its weight, columns
    (4, 256, 128): (4, 256, 128, 256, 128),
    (4, 192, 768): (2, 384, 1536, 512, 768),
    (16, 48, 192): (2, 384, 1536, 1280, 256),
    (6, 64, 32): (1, 384, 192, 768, 128),
    (8, 64, 32): (2, 256, 128, 512, 128),
    (3, 5, 7): (1, 15, 21, 384, 21),
    (1, 130, 300): (1, 130, 300, 256, 300),
}
every = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every
def test_as_few_blocks_as_make_whole_registers(shape):
    plan = tiling(*shape)
    assert (plan.groups, plan.inputs, plan.outputs, *plan.shape[1:]) == SHAPES[shape]
    assert plan.groups * len(plan.sources) == plan.groups * len(plan.targets) == shape[0]
    for windows, total in ((plan.sources, plan.inputs), (plan.targets, plan.outputs)):
        assert all(w.start % LANES == 0 and w.row % LANES == 0 for w in windows)
        assert all(w.stop % LANES == 0 or w.stop == total for w in windows)


def test_the_work_is_counted_in_registers():
    assert tiling(4, 256, 128).area == 4 * 256 * 128
    assert tiling(4, 192, 768).area == 4 * 256 * 768
    assert tiling(3, 5, 7).area == 3 * 128 * 128


@every
def test_windows_compute_the_product(rng, shape):
    plan = tiling(*shape)
    x, kernel = rng.standard_normal((3, shape[0] * shape[1])), rng.standard_normal(shape).astype("float32")
    weight = np.asarray(jax.jit(lay_out, static_argnums=0)(plan, kernel), np.float64)
    assert weight.shape == plan.shape
    y = np.full((3, shape[0] * shape[2]), np.nan)
    for group in range(plan.groups):
        u = x[:, group * plan.inputs : (group + 1) * plan.inputs]
        pairs = zip(plan.sources, plan.targets, strict=True)
        pieces = [u[:, s.columns] @ weight[group, s.rows, : t.stop - t.start] for s, t in pairs]
        for columns, value in merged(plan.targets, pieces):
            y[:, group * plan.outputs :][:, columns] = value
    np.testing.assert_allclose(y, reference.product(x, kernel), rtol=0, atol=1e-9)


@every
def test_the_way_back_is_the_adjoint(rng, shape):
    plan = tiling(*shape)
    weight = jnp.asarray(rng.standard_normal(plan.shape), jnp.float32)

    @jax.jit
    def run(weight):
        return take_back(plan, weight), jax.vjp(lambda k: lay_out(plan, k), jnp.zeros(shape))[1](weight)[0]

    np.testing.assert_array_equal(*run(weight))
