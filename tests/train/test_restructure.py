"""Linear maps change structure on the way into a model: exactly where that is possible, said how far where not."""

import numpy as np
import pytest

from vit_jax.layers import specs
from vit_jax.layers.block_sparse import BlockSparse
from vit_jax.layers.linear import Dense
from vit_jax.layers.low_rank import LowRank
from vit_jax.layers.monarch import Monarch
from vit_jax.layers.sparse24 import Sparse24, prune
from vit_jax.train.adapt import adapt
from vit_jax.train.restructure import restructure
from vit_jax.types import UserError


def flat(params, parent="encoder/block_0/mlp/mlp_in"):
    return {f"{parent}/{leaf}": np.asarray(x) for leaf, x in params.items()}


@pytest.fixture
def dense(rng):
    return Dense().from_dense(rng.normal(size=(32, 64)).astype(np.float32), np.arange(64, dtype=np.float32))


@pytest.mark.parametrize("spec", [Monarch(4), LowRank(8)])
def test_dense_maps_are_projected_and_multiplied_out_again(dense, spec):
    want = spec.from_dense(dense["kernel"], dense["bias"])
    found, notes = restructure(flat(dense) | {"cls": np.ones(3)}, flat(want) | {"cls": np.ones(3)})
    assert set(found) == {*flat(want), "cls"}
    for path, value in flat(want).items():
        np.testing.assert_array_equal(found[path], value)
    kernel = np.asarray(spec.to_dense(want)[0])
    error = np.linalg.norm(kernel - dense["kernel"]) / np.linalg.norm(dense["kernel"])
    assert notes == [
        f"1 linear maps go from dense to {specs.name_of(spec)}, off by {error:.2g} to {error:.2g} of their norm"
    ]
    back, notes = restructure(flat(want), flat(dense))
    np.testing.assert_allclose(back["encoder/block_0/mlp/mlp_in/kernel"], kernel, atol=1e-6)
    assert notes == [f"1 linear maps go from {specs.name_of(spec)} to dense, exactly"]


def test_from_one_structure_to_another(dense):
    four = Monarch(4).from_dense(dense["kernel"], dense["bias"])
    two = Monarch(2).from_dense(dense["kernel"], dense["bias"])
    found, notes = restructure(flat(four), flat(two))
    want = Monarch(2).from_dense(Monarch(4).to_dense(four)[0], dense["bias"])
    for path, value in flat(want).items():
        np.testing.assert_allclose(found[path], value, atol=1e-5)
    assert notes[0].startswith("1 linear maps go from monarch(4) to monarch(2)")


def test_what_was_padded_is_cut(rng):
    kernel = rng.normal(size=(30, 62)).astype(np.float32)
    bias = np.zeros(62, np.float32)
    padded = Monarch(4).from_dense(kernel, bias)
    found, _ = restructure(flat(padded), flat({"kernel": kernel, "bias": bias}))
    np.testing.assert_allclose(
        found["encoder/block_0/mlp/mlp_in/kernel"], np.asarray(Monarch(4).to_dense(padded)[0])[:30], atol=1e-6
    )


def test_equal_structures_and_other_sizes_stay(dense):
    other = Dense().from_dense(np.zeros((8, 8), np.float32), None)
    zeros = Dense().from_dense(np.zeros_like(dense["kernel"]), dense["bias"])  # as a new head is
    for want in (
        dense,
        zeros,
        other,
        {"kernel": np.zeros((2, 2, 3, 4))},
        Monarch(2).from_dense(np.zeros((8, 8)), None),
    ):
        found, notes = restructure(flat(dense), flat(want))
        assert notes == [] and list(found) == list(flat(dense))


def test_a_model_starts_from_another_structure(dense):
    tree = {"encoder": {"block_0": {"mlp": {"mlp_in": dense}}}}
    want = {"encoder": {"block_0": {"mlp": {"mlp_in": Monarch(4).from_dense(dense["kernel"], dense["bias"])}}}}
    found, notes = adapt(tree, want, name="x")
    np.testing.assert_array_equal(found["encoder"]["block_0"]["mlp"]["mlp_in"]["bias"], dense["bias"])
    assert len(notes) == 1 and "from dense to monarch(4)" in notes[0]
    with pytest.raises(UserError, match="kernel_1 is missing"):
        adapt({"encoder": {"block_0": {"mlp": {"mlp_in": {"bias": dense["bias"]}}}}}, want, name="x")


def test_a_model_of_frozen_masks_prunes_what_it_starts_from(dense):
    spec = Sparse24(mask="frozen")
    fresh = spec.from_dense(np.random.default_rng(3).normal(size=(32, 64)).astype(np.float32), dense["bias"])
    found, notes = restructure(flat(dense), flat(fresh))
    np.testing.assert_array_equal(found["encoder/block_0/mlp/mlp_in/kernel"], prune(dense["kernel"]))
    assert len(notes) == 1 and notes[0].startswith("1 linear maps go from dense to sparse24")
    again, notes = restructure(found, flat(fresh))
    np.testing.assert_array_equal(*(t["encoder/block_0/mlp/mlp_in/kernel"] for t in (again, found)))
    assert notes == []


def test_block_sparse_maps_come_and_go(dense):
    spec = BlockSparse(0.5, "random", 8, rank=2, seed=3)
    want = spec.from_dense(dense["kernel"], dense["bias"])
    found, notes = restructure(flat(dense), flat(want))
    assert set(found) == set(flat(want)) and "encoder/block_0/mlp/mlp_in/kernel_random_4_3" in found
    for path, value in flat(want).items():
        np.testing.assert_array_equal(found[path], value)
    assert len(notes) == 1 and notes[0].startswith(f"1 linear maps go from dense to {specs.name_of(spec)}, off by ")
    back, notes = restructure(found, flat(dense))
    assert set(back) == set(flat(dense)) and notes == [f"1 linear maps go from {specs.name_of(spec)} to dense, exactly"]
    np.testing.assert_allclose(back["encoder/block_0/mlp/mlp_in/kernel"], spec.to_dense(want)[0], atol=1e-6)
    other = BlockSparse(0.5, "random", 8, rank=2, seed=4).from_dense(dense["kernel"], dense["bias"])
    again, notes = restructure(found, flat(other))  # another layout is no mere copy
    assert set(again) == set(flat(other)) and "rank=2, seed=3) to block_sparse(0.5, " in notes[0]
    assert restructure(found, flat(want)) == (found, [])
    smaller = flat(Dense().from_dense(np.zeros((6, 8), np.float32), None))
    assert restructure(smaller, flat(want)) == (smaller, [])


def test_a_model_of_frozen_blocks_prunes_what_it_starts_from(dense):
    spec = BlockSparse(0.5, "magnitude", 8)
    fresh = spec.from_dense(np.random.default_rng(3).normal(size=(32, 64)).astype(np.float32), dense["bias"])
    found, notes = restructure(flat(dense), flat(fresh))
    np.testing.assert_array_equal(
        found["encoder/block_0/mlp/mlp_in/kernel"], spec.from_dense(dense["kernel"], None)["kernel"]
    )
    assert len(notes) == 1 and notes[0].startswith(f"1 linear maps go from dense to {specs.name_of(spec)}, off by")
    assert restructure(found, flat(fresh)) == (found, [])
    monarch = Monarch(4).from_dense(dense["kernel"], dense["bias"])
    found, notes = restructure(flat(monarch), flat(fresh))
    assert BlockSparse.of_pruned(found["encoder/block_0/mlp/mlp_in/kernel"]) == spec
    assert notes[0].startswith(f"1 linear maps go from monarch(4) to {specs.name_of(spec)}, off by")
