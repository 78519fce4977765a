"""Batch statistics through state, checkpoint, evaluation and prediction; other formats refuse them in a sentence."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax as vj
from tests.extend.conv_stages.model import ConvStages
from vit_jax import metrics, models, sharding
from vit_jax.config import Variant, parse
from vit_jax.train import loop, start
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build
from vit_jax.types import UserError

MODEL = {"model": ConvStages(), "duration": 6, "checkpoint_every": 2, "eval_every": 6, "ema": None}


class Stop(Exception):
    pass


def rows(folder):
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in metrics.read(folder)]


@pytest.fixture(scope="module")
def trained(tiny, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "run"
    with alone():
        return loop.run(tiny(**MODEL, accumulate=2), folder), folder


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tiny, alone, trained, tmp_path):
    def die(event):
        if event.step == 5:
            raise Stop

    with alone():
        with pytest.raises(Stop):
            loop.run(tiny(**MODEL, accumulate=2), tmp_path / "cut", hooks=[die])
        again = loop.run(tiny(**MODEL, accumulate=2), tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(trained[1])
    jax.tree.map(np.testing.assert_array_equal, again.state.variables, trained[0].state.variables)


@pytest.mark.thorough
def test_statistics_are_means_over_the_slices(tiny):
    """Of one step from zero and one: a fifth of the batch's statistics, averaged over the micro-batches."""
    setup = build(parse(TrainConfig, tiny(**MODEL, accumulate=2, augment={"size": 8, "train": []})), jax.devices()[:1])
    state, batches = setup.init(), setup.train_batches(0)
    batch = next(batches)
    batches.close()
    with jax.set_mesh(setup.mesh):
        params = jax.device_get(state.params)
        image = np.asarray(setup.prepare({**batch, "image": jnp.asarray(batch["image"])})["image"])
        state, _ = setup.step(state, jax.tree.map(jnp.asarray, batch))
    first = jax.lax.conv_general_dilated(
        image, params["stage_0_down"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    first = np.asarray(first, np.float64) + params["stage_0_down"]["bias"]
    slices = [first[0::2], first[1::2]]
    stats = state.variables["batch_stats"]["stage_0_norm"]
    np.testing.assert_allclose(stats["mean"], 0.2 * np.mean([s.mean((0, 1, 2)) for s in slices], 0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.8 + 0.2 * np.mean([s.var((0, 1, 2)) for s in slices], 0), atol=1e-6)


def moved(tiny, devices, **optim):
    """What one step of gradient descent from some random parameters adds to them, and how the last stage is split."""
    options = {
        **MODEL,
        "optim": {"optimizer": "sgd", "lr": 0.1, "warmup": 0, **optim},
        "mesh": {"fsdp": len(devices), "replica": 1},
    }
    setup = build(parse(TrainConfig, tiny(**options)), devices)
    draw = np.random.default_rng(0).normal
    before = jax.tree.map(lambda x: np.asarray(draw(0, 0.1, x.shape), x.dtype), setup.shapes.params)
    state = setup.init(jax.device_put(before, setup.shardings.params))
    with contextlib.closing(setup.train_batches(0)) as batches, jax.set_mesh(setup.mesh):
        state, _ = setup.step(state, sharding.put(next(batches), setup.mesh))
    split = state.params["stage_3_conv"]["kernel"].sharding.shard_shape((3, 3, 32, 32))
    return jax.tree.map(np.subtract, jax.device_get(state.params), before), split


@pytest.mark.slow
def test_layer_decay_under_fsdp(tiny, monkeypatch):
    """Eight shares of parameters and rows train as one device does; a stage learns half as fast as the next."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    decayed, split = moved(tiny, jax.devices(), layer_decay=0.5)
    assert split == (3, 3, 4, 32)
    alone, _ = moved(tiny, jax.devices()[:1], layer_decay=0.5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), decayed, alone)
    plain, _ = moved(tiny, jax.devices())
    for i in range(4):
        of = f"stage_{i}_conv"
        ratio = np.linalg.norm(decayed[of]["kernel"]) / np.linalg.norm(plain[of]["kernel"])
        assert ratio == pytest.approx(0.5 ** (4 - i), rel=1e-3)


@pytest.mark.thorough
def test_evaluation_and_prediction_use_them(trained, alone):
    result, folder = trained
    with alone():
        report = vj.evaluate(folder, changes={"model": ConvStages()})
    assert report.metrics == result.report.metrics
    model, params, preprocess = found = vj.load(folder, changes={"model": ConvStages()})
    assert jax.tree.all(jax.tree.map(np.array_equal, found.variables, jax.device_get(result.state.variables)))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (row,) = vj.predict(found, image, top=1)
    logits = model.apply({"params": params, **found.variables}, preprocess([image]))[0]
    assert row["predictions"][0]["probability"] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-5)


@pytest.mark.thorough
def test_a_start_takes_them(tiny, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.NAMES, "conv_stages", Variant(ConvStages))  # a row as a model of the package has
    setup = build(parse(TrainConfig, tiny(**MODEL, init=str(trained[1]))), jax.devices()[:1])
    state, said = start.start(setup, tmp_path / "new")
    assert said.endswith("every parameter taken as it is")
    for mine, theirs in ((state.variables, trained[0].state.variables), (state.params, trained[0].state.params)):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    other = build(parse(TrainConfig, tiny(init=str(trained[1]))), jax.devices()[:1])
    with pytest.raises(UserError, match="does not fit the model"):
        start.start(other, tmp_path / "other")


@pytest.mark.slow
def test_a_teacher_has_them(tiny, alone, trained, tmp_path, monkeypatch):
    """Without the statistics it could not even run."""
    monkeypatch.setitem(models.NAMES, "conv_stages", Variant(ConvStages))
    distill = {"name": "distill", "teacher": str(trained[1]), "feature": 0.0, "hard": 0.0}
    with alone():
        loop.run(tiny(objective=distill, duration=3), tmp_path / "student")
    rows = [row for row in metrics.read(tmp_path / "student") if "train/soft" in row]
    assert len(rows) == 3 and np.isfinite([row["train/soft"] for row in rows]).all()


def test_a_model_is_created_with_them(trained, monkeypatch):
    monkeypatch.setitem(models.NAMES, "conv_stages", Variant(ConvStages))
    found = vj.create("conv_stages", trained[1])
    jax.tree.map(np.testing.assert_array_equal, found.variables, jax.device_get(trained[0].state.variables))


def test_formats_of_others_refuse(trained, tmp_path):
    found = vj.load(trained[1], changes={"model": ConvStages()})
    for to, name in {"timm": "x", "hf": "x", "open_clip": "x", "npz": "x.npz", "big_vision": "x.npz"}.items():
        with pytest.raises(UserError, match=r"has no ConvStages; write --to vit_jax\.$"):
            vj.convert(found, tmp_path / name, to=to)
        assert not list(tmp_path.iterdir())
    vj.convert(found, tmp_path / "own", to="vit_jax")
