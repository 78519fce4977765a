"""Rotary positions: attention depends on differences of coordinates alone; they train under scan and beside a cls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extend.rotary.positions import Axial
from vit_jax import models
from vit_jax.layers.attention import attention_weights
from vit_jax.train import loop

FIELDS = dict(patch=4, width=32, depth=2, heads=2, mlp_dim=32, positions="sincos2d", num_classes=3)


def test_logits_depend_on_differences(rng):
    q, k = (jnp.asarray(rng.normal(size=(2, 9, 2, 16)), jnp.float32) for _ in range(2))
    at = jnp.asarray(Axial().coordinates(3, 3))
    weights = jax.jit(lambda shift: attention_weights(*Axial().rotate(q, k, at + shift)))
    here, there = weights(jnp.zeros((1, 2))), weights(jnp.asarray([[5.0, -3.0]]))
    np.testing.assert_allclose(here, there, atol=1e-5)
    assert np.abs(np.asarray(here) - np.asarray(jax.jit(attention_weights)(q, k))).max() > 0.01
    one = Axial().rotate(q, k, at)[0]
    angles = Axial().coordinates(3, 3)[:, :, None] * 100.0 ** (-np.arange(4) / 4)  # by complex numbers
    z = (np.asarray(q[..., :8]) + 1j * np.asarray(q[..., 8:])) * np.exp(1j * angles.reshape(1, 9, 1, 8))
    np.testing.assert_allclose(one, np.concatenate([z.real, z.imag], -1), atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_the_model_hears_them_and_scan_changes_nothing(rng, pool):
    image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    make = lambda **fields: models.create("vit", **(FIELDS | {"pool": pool} | fields))  # noqa: E731
    params = jax.jit(make(rotary=Axial()).init)(jax.random.key(0), image)["params"]

    def run(model):
        return np.asarray(jax.jit(lambda p: model.apply({"params": p}, image, method="embed_image"))(params))

    plain, turned, scanned = run(make()), run(make(rotary=Axial())), run(make(rotary=Axial(), scan=True))
    assert np.abs(plain - turned).max() > 1e-3
    np.testing.assert_allclose(turned, scanned, atol=1e-5)


@pytest.mark.slow
def test_a_run(tiny, alone, tmp_path):
    with alone():
        report = loop.run(tiny(model={"rotary": Axial(), "heads": 2}, duration=3), tmp_path / "run").report
    assert np.isfinite(report.metrics["loss"])
