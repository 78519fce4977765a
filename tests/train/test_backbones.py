"""Backbones of convolutions in the one train step: split over devices, with layer decay, statistics and all."""

import contextlib
import functools

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.config import parse
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build

MODELS = {
    "nf_resnet": {"depths": (1, 2), "widths": (16, 32), "stem": "3x3", "stem_width": 8},
    "mobilenet": {
        "stem_width": 8, "stem_stride": 1, "widths": (16, 16), "hidden": ((8,), (24, 24)), "kernels": (3, 5),
        "strides": (1, 2), "excite": (True, False), "activations": ("relu", "hard_swish"), "last_width": 16,
        "head_width": None,
    },
}  # fmt: skip


def moved(tiny, name, devices, layer_decay):
    """What one step of gradient descent adds to some parameters, and the statistics after it."""
    optim = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "layer_decay": layer_decay}
    raw = tiny(optim=optim, ema=None, mesh={"fsdp": len(devices)}) | {"model": {"name": name, **MODELS[name]}}
    setup = build(parse(TrainConfig, raw), devices)
    rng = np.random.default_rng(0)
    before = jax.tree.map(lambda x: np.asarray(rng.normal(0.3, 0.3, x.shape), x.dtype), setup.shapes.params)
    state = setup.init(jax.device_put(before, setup.shardings.params))
    with contextlib.closing(setup.train_batches(0)) as batches, jax.set_mesh(setup.mesh):
        state, _ = setup.step(state, sharding.put(next(batches), setup.mesh))
    split = any(x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves(state.params["stage_1"]))
    return jax.tree.map(np.subtract, jax.device_get(state.params), before), jax.device_get(state.variables), split


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_under_fsdp(name, tiny, monkeypatch):
    """Eight shares of parameters and rows train as one device does, statistics of the whole batch; blocks halve."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    decayed, statistics, split = moved(tiny, name, jax.devices(), 0.5)
    assert split and bool(statistics) == (name == "mobilenet")
    alone = moved(tiny, name, jax.devices()[:1], 0.5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (decayed, statistics), alone[:2])
    plain = moved(tiny, name, jax.devices(), 1.0)[0]
    for i, j, above in ((0, 0, 3), (1, 0, 2), (1, 1, 1)):
        at = [tree[f"stage_{i}"][f"block_{j}"] for tree in (decayed, plain)]
        kernels = [np.linalg.norm(block["conv_2" if name == "nf_resnet" else "conv"]["kernel"]) for block in at]
        assert kernels[1] > 0 and kernels[0] / kernels[1] == pytest.approx(0.5**above, rel=1e-3)
