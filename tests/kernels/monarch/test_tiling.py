"""The layout of the fused kernel, with the kernel's steps taken in NumPy's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.monarch import reference
from vit_jax.kernels.monarch.layout import Sizes
from vit_jax.kernels.monarch.tiling import exchange, lay_out, take_back, tiling
from vit_jax.kernels.windows import LANES, merged

SIZES = {
    "16 slots of 8": Sizes(K=16, P=8, T=3, L=16, S=16, parts=4),
    "4 slots of 32": Sizes(K=4, P=48, T=12, L=8, S=30, parts=2),
    "2 slots of 64": Sizes(K=4, P=192, T=48, L=4, S=192, parts=1),
    "6 blocks let 2 share": Sizes(K=6, P=40, T=5, L=2, S=7, parts=5),
    "3 blocks share none": Sizes(K=2, P=4, T=2, L=3, S=5, parts=2),
    "more than a register": Sizes(K=2, P=4, T=130, L=2, S=3, parts=1),
}
SLOTS = [(8, 16), (32, 4), (64, 2), (64, 2), (128, 1), (256, 1)]
exchanged = jax.jit(exchange, static_argnums=(0, 2))
every = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def draw(rng, sizes):
    K, P, T, L, S, _ = sizes
    return [rng.standard_normal(s).astype("float32") for s in ((5, K * P), (K, T * L, P), (L, S, K * T))]


def test_slots_are_as_narrow_as_the_blocks_allow():
    assert [tiling(sizes)[1:3] for sizes in SIZES.values()] == SLOTS


@every
def test_slices_begin_at_registers(sizes):
    plan = tiling(sizes)
    for group, total in ((plan.flat_sources, sizes.inputs), (plan.targets, sizes.outputs)):
        assert all(w.start % LANES == 0 and w.row % LANES == 0 for w in group)
        assert all(w.stop % LANES == 0 or w.stop == total for w in group)
    assert all(width % LANES == 0 for _, width in plan.shapes)


@every
def test_windows_and_slots_compute_the_product(rng, sizes):
    plan = tiling(sizes)
    x, kernel_1, kernel_2 = draw(rng, sizes)
    one, two = (np.asarray(w, np.float64) for w in jax.jit(lay_out, static_argnums=0)(plan, kernel_1, kernel_2))
    assert (one.shape, two.shape) == plan.shapes
    arranged = reference.to_parts(x, sizes.parts)
    blocks = [sum(arranged[:, w.columns] @ one[w.rows] for w in windows) for windows in plan.sources]
    middle = exchanged(plan, [jnp.asarray(b, jnp.float32) for b in blocks], -1)
    pieces = [np.asarray(z) @ two[w.rows].T for z, w in zip(middle, plan.targets, strict=True)]
    y = np.full((5, sizes.outputs), np.nan)
    for columns, value in merged(plan.targets, pieces):
        y[:, columns] = value
    want = reference.to_parts(reference.product(x, kernel_1, kernel_2), sizes.L)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * np.abs(want).max())


@every
def test_the_way_back_is_the_adjoint(rng, sizes):
    plan = tiling(sizes)
    _, kernel_1, kernel_2 = map(jnp.asarray, draw(rng, sizes))
    g = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in plan.shapes)

    @jax.jit
    def run(g, *kernels):
        return take_back(plan, *g), jax.vjp(lambda *k: lay_out(plan, *k), *kernels)[1](g)

    for a, b in zip(*run(g, kernel_1, kernel_2), strict=True):
        np.testing.assert_array_equal(a, b)


@every
def test_exchange_back_undoes_exchange(rng, sizes):
    plan = tiling(sizes)
    blocks = [jnp.asarray(rng.standard_normal((2, sizes.L * plan.slot)), jnp.float32) for _ in range(sizes.K)]
    there = exchanged(plan, blocks, -1)
    assert (len(there), there[0].shape) == (sizes.L, (2, sizes.K * plan.slot))
    for a, b in zip(exchanged(plan, there, 1), blocks, strict=True):
        np.testing.assert_array_equal(a, b)
