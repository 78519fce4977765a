"""Distances against loops in float64; a model that doubles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models.base import Doubled
from vit_jax.objectives import Upsample
from vit_jax.types import UserError


def between(a, b, distance):
    if distance == "cosine":
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return np.mean(np.abs(a - b)) if distance == "l1" else np.mean((a - b) ** 2)


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_the_loss_is_the_mean_over_places_and_the_sum_over_sizes(distance, rng):
    found, wanted = ([rng.standard_normal((3, *grid, 5)) for grid in ((4, 6), (2, 3))] for _ in range(2))
    asked = []

    def apply(params, image, **options):
        asked.append((params, image, options))
        grids = lambda all_: tuple(jnp.asarray(x, jnp.float32) for x in all_)  # noqa: E731
        return Doubled(grids(found), grids(wanted), ())

    batch = {"image": jnp.zeros((3, 4, 4, 3)), "mask": jnp.asarray([True, False, True])}
    rngs = {"dropout": jax.random.key(0)}
    loss, metrics = jax.jit(lambda batch: Upsample(distance)(apply, {}, batch, rngs, train=True))(batch)
    each = [
        sum(
            np.mean([between(u, v, distance) for u, v in zip(a[i].reshape(-1, 5), b[i].reshape(-1, 5), strict=True)])
            for a, b in zip(found, wanted, strict=True)
        )
        for i in (0, 2)
    ]
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    assert set(metrics) == {"loss"} and asked[0][2] == {"train": True, "rngs": rngs, "method": "doubled"}


def test_a_model_that_doubles_nothing_is_refused():
    model = models.create("lift")
    assert Upsample().fit_model(model, None) is model
    with pytest.raises(UserError, match=r"trains what doubles features, and ViT does not; set model\.name='lift'"):
        Upsample().fit_model(models.create("vit"), None)
