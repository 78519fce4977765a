"""Backbones other than ViTs in everything around the one train step: SAM, layer decay, FSDP, towers, a run's folder."""

import contextlib
import functools
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax as vj
from vit_jax import sharding, trees
from vit_jax.config import parse
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build
from vit_jax.types import UserError

THIN = {"depths": (1, 2), "widths": (8, 16), "patch": 2}
SCANS = {"patch": 4, "width": 16, "depth": 2, "state": 3}
MOBILE = {
    "stem_width": 8, "stem_stride": 1, "widths": (16, 16), "hidden": ((8,), (24, 24)), "kernels": (3, 5),
    "strides": (1, 2), "last_width": 16,
}  # fmt: skip
MODELS = {
    "nf_resnet": {"depths": (1, 2), "widths": (16, 32), "stem": "3x3", "stem_width": 8},
    "mobilenet": MOBILE | {"excite": (True, False), "activations": ("relu", "hard_swish"), "head_width": 12},
    "mobilenet_v2": MOBILE | {"name": "mobilenet", "excite": (False,) * 2, "activations": ("relu6",) * 2}
    | {"activation": "relu6", "head_width": None},
    "convnext": THIN,
    "hornet": THIN | {"orders": (2, 3), "global_filters": True, "filter_size": 8},
    "vim": SCANS,
    "mamba_mixer": SCANS,
}  # fmt: skip
WIDTHS = {"nf_resnet": 32, "mobilenet": 12}
HEAD = ("head", "norm", "map", "last", "norm_last")


def model(name):
    return {"name": name, **MODELS[name]}


def layers_above(path):
    """From the head, which is 0, to the stem, of two blocks in one stack or three in two stages."""
    first, *rest = path.split("/")
    if first.startswith("stage"):
        return 3 if first == "stage_0" else 1 if rest[0] == "block_1" else 2
    if first == "encoder":
        return 2 if rest[0] == "block_0" else 1
    return 0 if first in HEAD else None


def moved(tiny, name, devices, layer_decay):
    """What one step of gradient descent adds to some parameters, the statistics after it, and whether it was split."""
    optim = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "sam": "sam(rho=0.02)", "layer_decay": layer_decay}
    raw = tiny(optim=optim, ema=None, mesh={"fsdp": len(devices)}) | {"model": model(name)}
    setup = build(parse(TrainConfig, raw), devices)
    rng = np.random.default_rng(0)
    before = jax.tree.map(lambda x: np.asarray(rng.normal(0.3, 0.3, x.shape), x.dtype), setup.shapes.params)
    state = setup.init(jax.device_put(before, setup.shardings.params))
    with contextlib.closing(setup.train_batches(0)) as batches, jax.set_mesh(setup.mesh):
        state, _ = setup.step(state, sharding.put(next(batches), setup.mesh))
    split = any(x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves(state.params))
    return jax.tree.map(np.subtract, jax.device_get(state.params), before), jax.device_get(state.variables), split


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sam_and_layer_decay_under_fsdp(name, tiny, monkeypatch):
    """Eight shares of parameters and rows train as one device does, statistics of the whole batch; blocks halve."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    decayed, statistics, split = moved(tiny, name, jax.devices(), 0.5)
    assert split and bool(statistics) == name.startswith("mobilenet")
    alone = moved(tiny, name, jax.devices()[:1], 0.5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (decayed, statistics), alone[:2])
    plain = trees.flat(moved(tiny, name, jax.devices(), 1.0)[0])
    above = {path: layers_above(path) for path in plain}
    stem = max(n for n in above.values() if n is not None) + 1
    for path, step in trees.flat(decayed).items():
        share = 0.5 ** (stem if above[path] is None else above[path])
        np.testing.assert_allclose(step, share * plain[path], rtol=1e-3, atol=1e-6, err_msg=path)
    assert {0, 1, 2, None} <= set(above.values()) and np.mean([np.any(step) for step in plain.values()]) > 0.8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / f"{i}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_planned_evaluated_asked_and_exported(name, tiny, alone, images, tmp_path):
    raw = tiny(evaluators=["classify", "knn", "linear_probe"], duration=4, eval_every=4) | {"model": model(name)}
    with alone():
        vj.train(raw, tmp_path / "run")
        found = vj.evaluate(tmp_path / "run").metrics
    assert found == json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    assert {"accuracy", "knn/accuracy", "linear_probe/accuracy"} <= found.keys()
    loaded = vj.load(tmp_path / "run")
    variables = {"params": loaded.params, **loaded.variables}
    pixels = loaded.preprocess(images)
    features = vj.embed(loaded, images)
    np.testing.assert_allclose(features, loaded.model.apply(variables, pixels, method="embed_image"), atol=1e-5)
    assert features.shape == (3, WIDTHS.get(name, 16)) and np.ptp(features, axis=0).max() > 1e-4
    logits = loaded.model.apply(variables, pixels)
    answers = vj.predict(loaded, images)
    best = [row["predictions"][0]["probability"] for row in answers]
    np.testing.assert_allclose(best, jax.nn.softmax(logits).max(1), atol=1e-5)
    plan = vj.plan(raw, "cpu:1")
    shapes = jax.tree.leaves(loaded.params)
    assert plan.fits and plan.memory.parts["parameters"] == sum(4 * math.prod(x.shape) for x in shapes)
    assert vj.export(loaded, tmp_path / "out", to="stablehlo").difference < 1e-5
    if name in ("vim", "mamba_mixer", "hornet"):
        with pytest.raises(UserError, match=r"ONNX export knows no .*; export it with --to stablehlo\."):
            vj.export(loaded, tmp_path / "onnx", to="onnx")
    else:
        assert vj.export(loaded, tmp_path / "onnx", to="onnx").difference < 1e-5


TEXT = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
DECODER = {"decoder": {"depth": 1, "heads": 2, "mlp_dim": 32}, "queries": 3, "pool_heads": 2}
PAIRS = {
    "two_tower": ({"text_tower": TEXT}, "contrast", {"accumulate": 2}),
    "coca": ({"text_tower": TEXT | {"pool": "cls"}, **DECODER}, "coca", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_as_image_tower(name, kind, tiny):
    """Under SAM: the tower's parameters move, and all statistics where there are some."""
    fields, objective, options = PAIRS[kind]
    data = {"path": "digits_pairs", "canvas": 8, "workers": 1, "text": {"tokenizer": "bytes", "length": 52}}
    raw = tiny(optim={"optimizer": "adamw", "warmup": 0, "sam": "sam"}, ema=None, **options)
    raw |= {"data": data, "objective": objective, "evaluators": ["retrieval"], "best": "val/mean_r1"}
    raw["model"] = {"name": kind, "image_tower": model(name), "embed_dim": 8, **fields}
    setup = build(parse(TrainConfig, raw), jax.devices()[:1])
    rng = np.random.default_rng(0)
    before = jax.tree.map(lambda x: np.asarray(rng.normal(0.3, 0.3, x.shape), x.dtype), setup.shapes.params)
    state = setup.init(before)
    kept = jax.device_get(state.variables)
    with contextlib.closing(setup.train_batches(0)) as batches, jax.set_mesh(setup.mesh):
        state, _ = setup.step(state, sharding.put(next(batches), setup.mesh))
    after = jax.device_get(state.params)
    same = jax.tree.map(np.array_equal, after["image_tower"], before["image_tower"])
    assert np.mean(jax.tree.leaves(same)) < 0.2  # units may be silent
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
    statistics = trees.flat(jax.device_get(state.variables))
    assert bool(statistics) == name.startswith("mobilenet")
    assert not [path for path, x in trees.flat(kept).items() if np.array_equal(x, statistics[path])]
