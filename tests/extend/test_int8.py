"""Eight bits with calibrated ranges, a collection that training fills and evaluation reads, under scan as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax as vj
from tests.extend.int8.linear import Int8
from vit_jax.train import loop
from vit_jax.trees import flat


def test_a_layer_is_that_of_integers(rng):
    x, kernel = rng.normal(size=(5, 8)), rng.normal(size=(8, 6))
    layer, largest = Int8()(6, name=None, use_bias=False), 1.5
    variables = {"params": {"kernel": jnp.asarray(kernel, jnp.float32)}, "ranges": {"input": jnp.float32(largest)}}
    found = jax.jit(layer.apply)(variables, jnp.asarray(x, jnp.float32))
    step, steps = largest / 127, np.abs(kernel).max(0) / 127
    integers = np.clip(np.round(x / step), -127, 127).astype(np.int32) @ np.round(kernel / steps).astype(np.int32)
    np.testing.assert_allclose(found, integers * step * steps, rtol=1e-4, atol=1e-4)
    assert np.abs(found - x @ kernel).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_ranges_are_calibrated_saved_and_used(tiny, alone, tmp_path, scan):
    model = {"mlp_linear": Int8(), "qkv_linear": Int8(), "scan": scan, "dropout": 0.0}
    with alone():
        result = loop.run(tiny(model=model, duration=4, accumulate=2), tmp_path / "run")
    ranges = flat(jax.device_get(result.state.variables))
    assert len(ranges) == 2 * 3 and min(ranges.values()) > 0
    found = vj.load(tmp_path / "run", changes={"model.mlp_linear": Int8(), "model.qkv_linear": Int8()})
    assert {k: float(v) for k, v in flat(found.variables).items()} == {k: float(v) for k, v in ranges.items()}
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    run = jax.jit(lambda v: found.model.apply({"params": found.params, **v}, image, method="embed_image"))
    wide = jax.tree.map(lambda x: 50 * x, found.variables)
    assert np.abs(np.asarray(run(found.variables)) - np.asarray(run(wide))).max() > 1e-3
