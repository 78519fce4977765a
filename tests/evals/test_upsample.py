"""Cosines of doubled features against NumPy, example by example; what resizing alone gives."""

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.contexts import score
from vit_jax import models
from vit_jax.evals import Upsample
from vit_jax.models.base import Doubled
from vit_jax.types import UserError

INFO: Any = types.SimpleNamespace(num_classes=2, class_names=("a", "b"), encoder=None)


def cosine(a, b):
    return np.mean(np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def stretched(n):
    """The matrix that doubles ``n`` samples: each is read a quarter of a step to either side, inside the ends."""
    at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
    below = np.minimum(np.floor(at).astype(int), n - 2)
    rows = np.zeros((2 * n, n))
    rows[np.arange(2 * n), below], rows[np.arange(2 * n), below + 1] = 1 - (at - below), at - below
    return rows


def test_both_are_means_over_places_sizes_and_images(rng):
    found, wanted = ([rng.standard_normal((5, *grid, 3)) for grid in ((4, 6), (4, 4))] for _ in range(2))
    small = [rng.standard_normal((5, *grid, 3)) for grid in ((2, 3), (2, 2))]

    def apply(params, image, **options):
        assert options == {"train": False, "method": "doubled"}
        rows = image[:, 0, 0, 0].astype(jnp.int32)
        return Doubled(*(tuple(jnp.asarray(x, jnp.float32)[rows] for x in grids) for grids in (found, wanted, small)))

    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) % 5
    batches = [{"image": images[i : i + 2], "mask": np.arange(i, i + 2) < 5} for i in (0, 2, 4)]
    got = score(Upsample(), apply, {}, batches, INFO, model=models.create("lift")).metrics
    resized = [np.einsum("ih,jw,bhwd->bijd", stretched(x.shape[1]), stretched(x.shape[2]), x) for x in small]
    want = {name: np.mean([cosine(a, b) for a, b in zip(grids, wanted, strict=True)])
            for name, grids in (("cosine", found), ("bilinear", resized))}  # fmt: skip
    assert got == pytest.approx(want, abs=1e-6)


def test_a_model_that_doubles_nothing_is_refused():
    with pytest.raises(UserError, match="the evaluator 'upsample' scores what doubles features, and ViT does not"):
        score(Upsample(), None, {}, [], INFO, model=models.create("vit"))
