"""Adapters on any linear map: the base stays, dropout is heard under scan, the merged map is dense."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import vit_jax as vj
from tests.extend.lora.linear import FROZEN, LoRA
from vit_jax import models
from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.train import loop
from vit_jax.trees import flat


@pytest.fixture(scope="module")
def dense(tiny, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "run"
    with alone():
        loop.run(tiny(duration=3), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_a_dense_run_goes_on_with_adapters(tiny, alone, dense, tmp_path, scan, capsys):
    lora = LoRA(rank=2, dropout=0.5)
    model = {"qkv_linear": lora, "mlp_linear": lora, "scan": scan, "dropout": 0.0}
    with alone():
        result = loop.run(tiny(model=model, init=str(dense), optim={"freeze": [FROZEN]}, duration=4), tmp_path / "run")
    said = capsys.readouterr().out
    assert "linear maps go from dense" in said and "exactly" in said
    before, after = flat(vj.load(dense).params), flat(jax.device_get(result.state.params))
    for path in before:
        base = path if path in after else "/".join([*path.split("/")[:-1], "base", path.split("/")[-1]])
        if "head/" not in path:
            np.testing.assert_array_equal(before[path], after[base], err_msg=path)
    moved = [path for path in after if path.endswith("lora_b") and np.abs(after[path]).max() > 0]
    assert len(moved) == sum(path.endswith("lora_b") for path in after) == 6  # three maps a block
    model, params = result.setup.model, result.state.params
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    drop = lambda seed: jax.jit(  # noqa: E731
        lambda p: model.apply({"params": p}, image, train=True, rngs={"dropout": jax.random.key(seed)})
    )(params)
    assert np.abs(np.asarray(drop(0)) - np.asarray(drop(1))).max() > 1e-6


@pytest.mark.parametrize("base", [Dense(), Monarch(2)])
def test_merged_it_is_a_dense_map(rng, base):
    spec = LoRA(base, rank=3, scale=0.5)
    x = rng.normal(size=(5, 8)).astype(np.float32)
    layer = spec(12, name=None)
    params = jax.device_get(nn.unbox(jax.jit(layer.init)(jax.random.key(0), x)["params"]))
    params["lora_b"] = rng.normal(size=(3, 12)).astype(np.float32)
    kernel, bias = map(np.asarray, spec.to_dense(params))
    found = jax.jit(lambda p: layer.apply({"params": p}, x))(params)
    np.testing.assert_allclose(found, x @ kernel + bias, atol=1e-5)


def test_a_structured_base_keeps_its_roles():
    model = models.create("vit", patch=4, width=16, depth=1, heads=2, mlp_dim=16, mlp_linear=LoRA(Monarch(2)))
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    roles = flat(model.roles(jax.tree.map(lambda x: x, params)))
    lora = {path: role for path, role in roles.items() if "lora" in path}
    assert lora and {role.part for role in lora.values()} == {"block"}
