"""Activity: shares of a model computed by hand, whatever the batches; its picture."""

import types
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evals.contexts import score
from vit_jax import config, models, sharding
from vit_jax.evals import EVALUATORS, Activity
from vit_jax.layers.linear import matmul
from vit_jax.types import UserError

INFO: Any = types.SimpleNamespace(num_classes=2, class_names=("a", "b"), encoder=None)
SMALL = dict(patch=4, width=8, heads=2, mlp_dim=12)


def setting(name, rng, n=5, **fields):
    model = models.create(name, num_classes=2, **SMALL | fields)
    images = rng.normal(size=(n, 8, 8, 3)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), images[:1])["params"])
    return lambda p, *a, **k: model.apply({"params": p}, *a, **k), params, images


def batches(images, size):
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        pad = size - len(rows)
        yield {
            "image": np.pad(rows, ((0, pad), (0, 0), (0, 0), (0, 0)), constant_values=np.nan),
            "mask": np.arange(size) < len(rows),
        }


@pytest.mark.thorough
@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))])
def test_shares_equal_those_counted_by_hand(rng, size):
    apply, params, images = setting("vit_ti16", rng, depth=1, activation="relu", pool="gap")
    report = score(Activity(), apply, params, batches(images, size), INFO)
    block = params["encoder"]["block_0"]
    _, state = apply(params, images, mutable=["intermediates"], capture_intermediates=True)
    normed = state["intermediates"]["encoder"]["block_0"]["norm_mlp"]["__call__"][0]
    hidden = matmul(normed, block["mlp"]["mlp_in"]["kernel"], block["mlp"]["mlp_in"]["bias"])
    want = float(np.mean(np.asarray(hidden) > 0))
    assert 0.2 < want < 0.8
    assert report.metrics == pytest.approx({"active": want, "active/block_0/mlp": want}, rel=1e-6)


@pytest.mark.thorough
def test_blocks_come_in_their_order_and_gelu_is_always_active(rng, tmp_path):
    apply, params, images = setting("vit_ti16", rng, depth=11, scan=True)
    report = score(Activity(), apply, params, batches(images, 5), INFO)
    assert list(report.metrics) == ["active", *(f"active/block_{i}/mlp" for i in range(11))]
    assert set(report.metrics.values()) == {1.0}
    report.draw(tmp_path, INFO.class_names)
    assert (tmp_path / "activity.png").stat().st_size > 5000


def test_a_mixer_has_two_mlps_a_block_and_topk_bounds_both(rng):
    model = dict(depth=2, token_dim=16, patch=4, width=8, mlp_dim=12, activation={"name": "topk", "k": 3})
    parsed = config.parse(
        Annotated[Any, config.Choice(models.MODELS)], {"name": "mixer_s16", "num_classes": 2, **model}
    )
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(parsed.init)(jax.random.key(1), images[:1])["params"])
    apply = lambda p, *a, **k: parsed.apply({"params": p}, *a, **k)  # noqa: E731
    found = score(Activity(), apply, params, batches(images, 4), INFO).metrics
    names = {f"active/block_{i}/{m}" for i in range(2) for m in ("mlp", "tokens")}
    assert set(found) == {"active"} | names
    assert all(0 < found[n] <= 3 / (12 if n.endswith("mlp") else 16) + 1e-6 for n in names)


def test_many_devices_find_the_same(rng):
    apply, params, images = setting("vit_ti16", rng, n=8, depth=1, activation="relu")
    one = score(Activity(), apply, params, batches(images, 8), INFO).metrics
    mesh = sharding.make_mesh(sharding.MeshConfig())
    with jax.set_mesh(mesh):
        eight = score(Activity(), apply, params, (sharding.put(b, mesh) for b in batches(images, 8)), INFO).metrics
    assert eight == pytest.approx(one, rel=1e-6)


def test_a_model_without_mlps_is_refused(rng):
    class Bare(nn.Module):
        def embed_image(self, image, *, train=False):
            return jnp.mean(image, axis=(1, 2))

    apply = lambda p, *a, **k: Bare().apply({}, *a, **k)  # noqa: E731
    with pytest.raises(UserError, match="this model has none"):
        score(Activity(), apply, {}, batches(rng.normal(size=(2, 8, 8, 3)).astype(np.float32), 2), INFO)


def test_selected_by_name():
    assert config.parse(Annotated[Any, config.Choice(EVALUATORS)], "activity") == Activity()
