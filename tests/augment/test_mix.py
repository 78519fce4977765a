"""Mixup and cutmix against NumPy and their invariants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.augment import mix
from vit_jax.augment.base import MixOp
from vit_jax.types import UserError

B, C = 7, 5


@dataclasses.dataclass(frozen=True)
class Write(MixOp):
    """Leaves its number in the labels."""

    number: float = 0.0

    def __call__(self, key, images, labels, mask):
        return images, jnp.full_like(labels, self.number)


@pytest.fixture
def batch(rng):
    labels = np.eye(C, dtype=np.float32)[rng.integers(0, C, B)]
    return rng.random((B, 6, 8, 3), np.float32), labels, np.array([1, 1, 1, 0, 1, 1, 1], bool)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_partners_exchanges_neighbours(n):
    expected = [i ^ 1 if i ^ 1 < n else i for i in range(n)]
    np.testing.assert_array_equal(mix.partners(jnp.arange(n)), expected)


def test_soft_is_one_hot_and_idempotent():
    labels = mix.soft(jnp.array([2, 0]), 3)
    assert labels.dtype == jnp.float32
    np.testing.assert_array_equal(labels, [[0, 0, 1], [1, 0, 0]])
    assert mix.soft(labels, 3) is labels


@pytest.mark.first(1)
@pytest.mark.parametrize("per", ["batch", "example"])
def test_mixup_is_the_convex_combination_of_neighbours(batch, per):
    images, labels, mask = batch
    op = mix.Mixup(alpha=0.8, per=per)
    share = np.float64(jax.jit(op.weights)(jax.random.key(1), mask))
    out, soft = jax.jit(op)(jax.random.key(1), *batch)
    assert share[2] == 1  # the partner of row 2 is padding
    valid = np.delete(share, 2)
    assert len(np.unique(valid)) == (1 if per == "batch" else B - 1) and 0 < valid.min() < valid.max() + 1e-9 < 1
    other = [1, 0, 3, 2, 5, 4, 6]
    for i in range(B):
        np.testing.assert_allclose(out[i], share[i] * images[i] + (1 - share[i]) * images[other[i]], atol=1e-6)
        np.testing.assert_allclose(soft[i], share[i] * labels[i] + (1 - share[i]) * labels[other[i]], atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("per", ["batch", "example"])
def test_cutmix_takes_a_rectangle_and_weighs_labels_by_its_pixels(batch, per):
    images, labels, _ = batch
    op = jax.jit(mix.Cutmix(per=per))
    shares = []
    for key in jax.random.split(jax.random.key(0), 20):
        out, soft = map(np.asarray, op(key, *batch))
        theirs = np.asarray(mix.partners(images))
        cut = (out == theirs).all(-1)
        assert ((out == images).all(-1) | cut).all()
        cut[6] = False  # its own partner
        for i in range(6):
            box = np.ix_(cut[i].any(1), cut[i].any(0))
            assert cut[i][box].all()
            share = 1 - cut[i].mean()
            expected = share * labels[i] + (1 - share) * np.asarray(mix.partners(labels))[i]
            np.testing.assert_allclose(soft[i], expected, atol=1e-6)
        assert not cut[2].any() and (out[2] == images[2]).all()
        shares.append(1 - cut[[0, 1, 4, 5]].mean((1, 2)))
    assert (np.ptp(shares, axis=1).max() > 0) == (per == "example")
    assert np.std(np.array(shares)[:, 0]) > 0.1


def test_cutmix_box_has_the_drawn_area_before_clipping():
    op = mix.Cutmix(alpha=1.0, per="example")
    n, side = 500, 64
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None] % 2, (n, side, 1, 3))
    # With one column the cut share is (clipped height) for those boxes that cover the column.
    key = jax.random.key(5)
    out, soft = jax.jit(op)(key, images, np.eye(2, dtype=np.float32)[np.arange(n) % 2], np.ones(n, bool))
    assert np.allclose(np.asarray(soft).sum(1), 1, atol=1e-6)
    cut = (np.asarray(out) != images).mean((1, 2, 3))
    drawn = 1 - np.asarray(jax.jit(op.weights)(jax.random.split(key)[0], np.ones(n, bool)))
    assert (cut <= np.sqrt(drawn) + 1.5 / side).all()
    assert (cut[drawn > 0.9999 - 1e-3] > 0.4).all()


def test_choose_takes_one_per_batch_with_the_given_probabilities(batch):
    keys = jax.random.split(jax.random.key(0), 600)
    for probs, expected in (((0.3, 0.5), (0.2, 0.3, 0.5)), ((1.0, 1.0), (0, 0.5, 0.5)), ((0.4,), (0.6, 0.4, 0))):
        ops = tuple(Write(p, float(i)) for i, p in enumerate(probs, 1))
        labels = jnp.zeros_like(batch[1])
        write = jax.vmap(lambda k, ops=ops, labels=labels: mix.choose(ops, k, batch[0], labels, batch[2])[1][0, 0])
        drawn = np.asarray(jax.jit(write)(keys))
        np.testing.assert_allclose([(drawn == i).mean() for i in range(3)], expected, atol=0.06)


def test_wrong_fields_are_sentences():
    with pytest.raises(UserError, match=r"alpha=0\.0 is not allowed"):
        mix.Mixup(alpha=0.0)
    with pytest.raises(UserError, match="prob=2"):
        mix.Cutmix(prob=2.0)
