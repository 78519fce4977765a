"""The layout of the fused kernel, with the kernel's steps taken in NumPy's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.monarch import reference
from vit_jax.kernels.monarch.layout import Sizes
from vit_jax.kernels.monarch.tiling import exchange, lay_out, lay_out_bias, slots, take_back, tiling
from vit_jax.kernels.windows import LANES, merged

SIZES = {
    "16 slots of 8": Sizes(K=16, P=8, T=3, L=16, S=16, parts=4),
    "4 slots of 32": Sizes(K=4, P=48, T=12, L=8, S=30, parts=2),
    "2 slots of 64": Sizes(K=4, P=192, T=48, L=4, S=192, parts=1),
    "6 blocks let 2 share": Sizes(K=6, P=40, T=5, L=2, S=7, parts=5),
    "3 blocks share none": Sizes(K=2, P=4, T=2, L=3, S=5, parts=2),
    "more than a register": Sizes(K=2, P=4, T=130, L=2, S=3, parts=1),
    "a register": Sizes(K=2, P=4, T=128, L=3, S=3, parts=1),
}
WIDTHS = {True: [8, 32, 64, 64, 128, 64, 0], False: [64, 128, 64, 64, 64, 64, 0]}
"""Of a slot, with blocked outputs and with natural ones."""
exchanged = jax.jit(exchange, static_argnums=(0, 2))
every = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
ordered = pytest.mark.parametrize("blocked", [True, False])


def draw(rng, sizes):
    K, P, T, L, S, _ = sizes
    return [rng.standard_normal(s).astype("float32") for s in ((5, K * P), (K, T * L, P), (L, S, K * T))]


@ordered
def test_slots_are_as_narrow_as_the_blocks_allow(blocked):
    assert [tiling(sizes, blocked).slots.slot for sizes in SIZES.values()] == WIDTHS[blocked]


@every
@ordered
def test_slices_begin_at_registers(sizes, blocked):
    plan = tiling(sizes, blocked)
    for group, total in ((plan.flat_sources, sizes.inputs), (plan.targets, sizes.outputs)):
        assert all(w.start % LANES == 0 and w.row % LANES == 0 for w in group)
        assert all(w.stop % LANES == 0 or w.stop == total for w in group)
    assert plan.slots.before % LANES == 0 and plan.slots.after % LANES == 0


@pytest.mark.first(4)
@every
@ordered
def test_windows_and_slots_compute_the_product(rng, sizes, blocked):
    plan = tiling(sizes, blocked)
    x, kernel_1, kernel_2 = draw(rng, sizes)
    one, two = (np.asarray(w, np.float64) for w in jax.jit(lay_out, static_argnums=0)(plan, kernel_1, kernel_2))
    assert (one.shape, two.shape) == plan.shapes
    arranged = reference.to_parts(x, sizes.parts)
    pairs = zip(one, plan.sources, strict=True)
    blocks = [sum(arranged[:, w.columns] @ block[:, w.rows].T for w in windows) for block, windows in pairs]
    middle = exchanged(plan.slots, [jnp.asarray(b, jnp.float32) for b in blocks])
    triples = zip(middle, two, plan.targets, strict=True)
    pieces = [np.asarray(z) @ block[: w.stop - w.start].T for z, block, w in triples]
    y = np.full((5, sizes.outputs), np.nan)
    for columns, value in merged(plan.targets, pieces):
        y[:, columns] = value
    want = reference.to_parts(reference.product(x, kernel_1, kernel_2), sizes.L if blocked else 1)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_moved_and_not_rounded(rng, dtype):
    sizes = SIZES["6 blocks let 2 share"]
    kernels = [jnp.asarray(k, dtype) for k in draw(rng, sizes)[1:]]
    for w, kernel in zip(jax.jit(lay_out, static_argnums=0)(tiling(sizes, False), *kernels), kernels, strict=True):
        assert w.dtype == dtype
        np.testing.assert_array_equal(np.sort(w[w != 0]), np.sort(np.ravel(kernel)))


@pytest.mark.first(4)
@every
@ordered
def test_the_way_back_is_the_adjoint(rng, sizes, blocked):
    plan = tiling(sizes, blocked)
    _, *kernels = map(jnp.asarray, draw(rng, sizes))
    there = jax.jit(lay_out, static_argnums=0)(plan, *kernels)
    back = jax.jit(take_back, static_argnums=0)(plan, *(jnp.where(w == 0, 1000.0, w) for w in there))
    for a, b in zip(back, kernels, strict=True):
        np.testing.assert_array_equal(a, b)  # what lies beside the values does not come back


@pytest.mark.first(2)
@pytest.mark.parametrize(("K", "L", "T"), [(16, 16, 3), (4, 8, 12), (6, 2, 5), (2, 3, 2), (2, 2, 130), (4, 4, 192)])
def test_exchange_back_undoes_exchange(rng, K, L, T):
    plan = slots(K, L, T)
    blocks = [jnp.asarray(rng.standard_normal((2, plan.before)), jnp.float32) for _ in range(K)]
    there = exchanged(plan, blocks)
    assert (len(there), there[0].shape) == (L, (2, plan.after))
    given, taken = plan.lanes()
    np.testing.assert_array_equal(
        [[block[:, lanes] for lanes in row] for block, row in zip(blocks, given, strict=True)],
        np.swapaxes([[block[:, lanes] for lanes in row] for block, row in zip(there, taken, strict=True)], 0, 1),
    )
    for a, b in zip(exchanged(plan, there, True), blocks, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_block_that_takes_all(rng):
    plan = slots(4, 1, 192)  # 128 lanes, and slots of 64
    blocks = [jnp.asarray(rng.standard_normal((2, plan.before)), jnp.float32) for _ in range(4)]
    (there,) = exchanged(plan, blocks)
    assert (plan.before, there.shape) == (256, (2, 768))
    given, taken = plan.lanes()
    for block, again, lanes, place in zip(blocks, exchanged(plan, [there], True), given[:, 0], taken[0], strict=True):
        np.testing.assert_array_equal(block[:, lanes], there[:, place])
        np.testing.assert_array_equal(again[:, lanes], block[:, lanes])


def test_a_layer_between_two_maps_lies_in_slots(rng):
    sizes = SIZES["2 slots of 64"]
    hidden = slots(4, 2, 96)
    plan = tiling(sizes, True, taken=hidden)
    _, *kernels = draw(rng, sizes)
    bias = rng.standard_normal(sizes.outputs).astype("float32")
    _, w2 = lay_out(plan, *kernels)
    laid = lay_out_bias(plan, jnp.asarray(bias))
    assert w2.shape[:2] == (4, hidden.before) and laid.shape == (4, 1, hidden.before)
    places = hidden.lanes()[0].reshape(4, -1)
    for block in range(4):
        np.testing.assert_array_equal(laid[block, 0, places[block]], bias[block::4])
        np.testing.assert_array_equal(
            np.sort(w2[block, places[block]], 1)[:, -1], np.maximum(kernels[1][block].max(1), 0)
        )
