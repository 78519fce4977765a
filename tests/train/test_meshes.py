"""Every way to train gives the curve of one device on every mesh of eight: minutes long, so run with ``-m slow``."""

import functools
import json

import jax
import numpy as np
import pytest

from vit_jax import sharding

pytestmark = pytest.mark.slow

TOWER = {"width": 16, "depth": 1, "heads": 4, "mlp_dim": 64}
PAIRS = {
    "model": {"name": "two_tower", "image_tower": {"name": "vit", "patch": 8, "pool": "gap", **TOWER},
              "text_tower": TOWER, "embed_dim": 8},
    "data": {"path": "digits_pairs", "canvas": 16, "workers": 1, "text": {"tokenizer": "bytes", "length": 52}},
    "evaluators": ["retrieval"],
    "best": "val/mean_r1",
}  # fmt: skip
RUNS = {
    "vit": {},
    "sam": {"optim": {"sam": "sam(rho=0.1)", "lr": 0.01, "warmup": 1}},
    "accumulated sam": {"optim": {"sam": "gsam(m=16)", "lr": 0.01, "warmup": 1}, "accumulate": 2},
    "clip dense": {**PAIRS, "objective": {"name": "contrast", "form": "dense"}},
    "clip chunked": {**PAIRS, "objective": {"name": "contrast", "form": "chunked"}},
    "clip ring": {**PAIRS, "objective": {"name": "contrast", "form": "ring"}},
    "coca": {
        **PAIRS,
        "model": {**PAIRS["model"], "name": "coca", "decoder": {"depth": 1, "heads": 4, "mlp_dim": 64}, "queries": 3,
                  "pool_heads": 2, "text_tower": {**TOWER, "pool": "cls"}},
        "objective": {"name": "coca"},
    },
    "drawn patches": {
        "model": {"name": "vit", "patch": 4, "patches": [4, 2, 8], "pool": "gap", **TOWER},
        "objective": {"name": "drawn"},
    },
    "annealed shares": {
        "model": {"name": "vit", "patch": 4, **TOWER, "reduce": "attentive(0.5, (0,), levels=(1.0,))"},
        "objective": "annealed(classify, 1, 4)",
    },
    "lookup": {"model": {"name": "vit", "patch": 4, **TOWER, "depth": 2, "reduce": "lookup(1)"}},
    "predicted": {"model": {"name": "vit", "patch": 4, **TOWER, "logit_bias": "predicted(0.5, tokens=2)"}},
    "reconstruct": {
        "model": {"name": "vit", "patch": 4, **TOWER, "logit_bias": "predicted(0.5, tokens=2)"},
        "objective": "reconstruct(1.0)",
    },
    "drawn ring": {
        **PAIRS,
        "model": {**PAIRS["model"], "image_tower": {**PAIRS["model"]["image_tower"], "patches": [8, 4]}},
        "objective": {"name": "drawn", "objective": {"name": "contrast", "form": "ring"}},
    },
}  # fmt: skip
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x1x4": (2, 1, 4), "2x2x2": (2, 2, 2)}


@pytest.fixture(scope="module")
def curve(tiny, one_device):
    """``curve(run, mesh)``: losses of the first five steps."""

    @functools.cache
    def found(run, mesh):
        raw = tiny(batch_size=32, model={"heads": 4}) | {"mesh": dict(zip(sharding.AXES, mesh, strict=True))}
        changes = json.loads(json.dumps(RUNS[run]))
        raw |= {k: {**raw[k], **v} if k == "optim" else v for k, v in changes.items()}
        if "data" in changes:
            raw["augment"] = {"size": 16, "train": ["flip"]}
        setup, losses = one_device(raw, int(np.prod(mesh))), []
        with jax.set_mesh(setup.mesh):
            state, batches = setup.init(), setup.train_batches(0)
            for _ in range(5):
                state, metrics = setup.step(state, sharding.put(next(batches), setup.mesh))
                losses.append(float(metrics["loss"]))
            batches.close()
        return np.array(losses)

    return found


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("run", RUNS)
def test_the_curve_is_that_of_one_device(run, mesh, curve):
    single = curve(run, (1, 1, 1))
    assert np.ptp(single) > 1e-3
    np.testing.assert_allclose(curve(run, MESHES[mesh]), single, atol=1e-5, rtol=0)
