"""Token merging: fewer tokens after every block; copies merged change nothing; a scan is refused in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extend.merging.reducer import Merge
from vit_jax import models
from vit_jax.layers.block import Block
from vit_jax.layers.hooks import Place, Tokens
from vit_jax.train import loop
from vit_jax.types import UserError

FIELDS = dict(patch=4, width=16, depth=3, heads=2, mlp_dim=16, num_classes=3)


@pytest.mark.thorough
def test_tokens_vanish_block_by_block(rng):
    image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    model = models.create("vit", **FIELDS, reduce=Merge(3, until=2))
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    run = jax.jit(lambda p: model.apply({"params": p}, image, mutable=["features"]))
    _, state = run(params)
    found = [state["features"]["encoder"][f"block_{i}"].shape[1] for i in range(3)]
    assert found == [14, 11, 11]  # of 17
    none = models.create("vit", **FIELDS, reduce=Merge(0))
    plain = models.create("vit", **FIELDS)
    out = [jax.jit(lambda p, m=m: m.apply({"params": p}, image))(params) for m in (none, plain)]
    np.testing.assert_allclose(*out, atol=1e-5)


def test_copies_may_be_merged(rng):
    """Two equal tokens as one of size two: what every other token becomes is the same (proportional attention)."""
    x = rng.normal(size=(1, 5, 16)).astype(np.float32)
    x[:, 2] = x[:, 1]  # an even and an odd token
    block = Block(mlp_dim=16, heads=2)
    params = jax.jit(block.init)(jax.random.key(0), x)["params"]
    merging = Block(mlp_dim=16, heads=2, reduce=lambda *, name: Merge(1)(Place(0, 1), name=name))
    whole = np.asarray(jax.jit(lambda p: block.apply({"params": p}, block.apply({"params": p}, x)))(params))
    first = jax.jit(lambda p: merging.apply({"params": p}, x))(params)
    assert isinstance(first, Tokens) and sorted(np.asarray(first.size[0])) == [1, 1, 1, 2]
    second = np.asarray(jax.jit(lambda p, t: block.apply({"params": p}, t))(params, first).x)
    for token in whole[0, [0, 1, 3, 4]]:
        assert np.abs(second[0] - token).max(-1).min() < 1e-5
    assert second.shape == (1, 4, 16)


def test_a_scan_is_refused(rng):
    image = jnp.zeros((1, 16, 16, 3))
    model = models.create("vit", **FIELDS, reduce=Merge(2), scan=True)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    with pytest.raises(UserError, match="set scan=False"):
        jax.eval_shape(lambda p: model.apply({"params": p}, image), params)


@pytest.mark.slow
def test_a_run(tiny, alone, tmp_path):
    with alone():
        raw = tiny(model={"reduce": Merge(1, until=1), "pool": "cls"}, duration=3)
        report = loop.run(raw, tmp_path / "run").report
    assert np.isfinite(report.metrics["loss"])
