"""Image-text runs through the whole of training: resuming, meshes, exact accumulation, other weights, mistakes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import types

import chex
import jax
import numpy as np
import pytest

from vit_jax import checkpoint, sharding
from vit_jax.data.loader import train_batches
from vit_jax.metrics import read
from vit_jax.train import loop, start
from vit_jax.types import UserError

IMAGE = {"name": "vit", "patch": 8, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "pool": "gap"}
TEXT = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="module")
def pairs(tiny):
    """``pairs(coca=False, **changes)``: the configuration of a tiny CLIP or CoCa on digit pairs."""

    def make(coca=False, **changes):
        raw = tiny(optim={"bounds": (("logit_scale", 0.0, 4.6052),)}, augment={"size": 16, "train": ["flip"]})
        raw["model"] = {"name": "two_tower", "image_tower": IMAGE, "text_tower": TEXT, "embed_dim": 8}
        raw["objective"] = {"name": "contrast"}
        if coca:
            decoder = {"depth": 1, "heads": 2, "mlp_dim": 32}
            raw["model"] |= {"name": "coca", "decoder": decoder, "queries": 3, "pool_heads": 2}
            raw["model"]["text_tower"] = {**TEXT, "pool": "cls"}
            raw["objective"] = {"name": "coca"}
        raw["data"] = {"path": "digits_pairs", "canvas": 16, "workers": 1, "text": {"tokenizer": "bytes", "length": 52}}
        raw |= {
            "evaluators": ["retrieval"],
            "best": "val/mean_r1",
            "eval_batch_size": 128,
            "duration": 4,
            "eval_every": 4,
        }
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
        return raw

    return make


def step(setup, state, batch):
    with jax.set_mesh(setup.mesh):
        return jax.device_get(setup.step(state, sharding.put(batch, setup.mesh)))


def first_batch(setup):
    batches = setup.train_batches(0)
    try:
        return next(batches)
    finally:
        batches.close()


@pytest.fixture
def _one_device(alone):
    with alone():
        yield


SHORT = {"text": {"tokenizer": "bytes", "length": 30}}


@pytest.fixture(scope="module")
def trained(pairs, alone, tmp_path_factory):
    """A CLIP's run to its end: ``folder``, ``state`` on the host, and what it ``said``."""
    folder, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    raw = pairs(data=SHORT, plots=True, evaluators=[
        "retrieval", {"name": "zero_shot", "data": "digits", "templates": "digits"}, {"name": "knn", "data": "digits"},
    ])  # fmt: skip
    with alone(), contextlib.redirect_stdout(said):
        result = loop.run(raw, folder)
    return types.SimpleNamespace(folder=folder, state=jax.device_get(result.state), said=said.getvalue())


def test_a_run_says_what_it_is(trained):
    workdir = trained.folder
    assert "captions are longer than data.text.length=30 tokens and were cut" in trained.said
    found = {k for row in read(workdir) for k in row}
    assert {
        "train/loss",
        "train/scale",
        "val/mean_r1",
        "val/i2t_r1",
        "val/zero_shot/accuracy",
        "val/knn/accuracy",
    } <= found
    assert (workdir / "retrieval.png").exists()
    assert json.loads((workdir / "results.json").read_text())["metrics"]["images"] == 512
    about = checkpoint.read_item(workdir / "checkpoints" / "4", "meta")
    assert about["tokenizer"]["length"] == 30 and about["tokenizer"]["state"]["kind"] == "bytes"


class Stop(Exception):
    pass


def stop(moment):
    if moment.step == 3:
        raise Stop


@pytest.mark.usefixtures("_one_device")
def test_a_run_resumes_bit_for_bit(pairs, trained, workdir):
    raw = pairs(data=SHORT, checkpoint_every=2)
    with pytest.raises(Stop):
        loop.run(raw, workdir, [stop])
    again = loop.run(raw, workdir)
    chex.assert_trees_all_equal(jax.device_get(again.state), trained.state)


@pytest.mark.slow  # on 2x2x2 the next one is so, and more
@pytest.mark.parametrize("mesh", [(2, 2, 2), (2, 4, 1)], ids=str)
def test_the_mesh_does_not_matter(mesh, pairs, one_device):
    one = one_device(pairs())
    many = one_device(pairs(mesh=dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True))), 8)
    (expected, values), (state, metrics) = (step(s, s.init(), first_batch(s)) for s in (one, many))
    chex.assert_trees_all_close(state.params, expected.params, atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], values["loss"], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("coca", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["clip", "coca"])
def test_accumulation_is_exact_with_everything_on(coca, pairs, one_device):
    """A mesh of 2x2x2, EMA, SAM, a frozen tower and dropout: 4 micro-batches give the step of one device at once."""
    frozen = {"freeze": ("image_tower/.*",), "sam": "sam(rho=0.05)", "optimizer": "sgd"}
    raw = pairs(coca, optim={**frozen, "warmup": 0, "lr": 0.1}, ema=0.9, batch_size=32)
    raw["model"]["lock"] = "image"
    one = one_device({**raw, "accumulate": 1})
    many = one_device({**raw, "accumulate": 4, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}, 8)
    batch = first_batch(one)
    expected, values = step(one, one.init(), batch)
    found, others = step(many, many.init(), batch)
    moved = np.abs(
        expected.params["text_tower"]["token"]["embedding"] - expected.ema["text_tower"]["token"]["embedding"]
    )
    assert moved.max() > 1e-6
    chex.assert_trees_all_close(found.params, expected.params, atol=2e-6)
    chex.assert_trees_all_close(found.ema, expected.ema, atol=2e-6)
    np.testing.assert_allclose(others["grad_norm"], values["grad_norm"], rtol=1e-4)
    fresh = jax.device_get(one.init().params["image_tower"])
    chex.assert_trees_all_equal(found.params["image_tower"], fresh)


def test_hosts_read_what_one_host_reads(pairs, one_device):
    setup = one_device(pairs())
    options = {"batch_size": 12, "seed": 5, "canvas": 16, "start_step": 3, "steps": 6}

    def read_all(**hosts):
        batches = train_batches(setup.train, **options, **hosts)
        try:
            return [dict(b) for b in batches]
        finally:
            batches.close()

    whole = read_all()
    held = [np.arange(i, 12, 3) for i in range(3)]
    parts = [read_all(places=places) for places in held]
    for k, batch in enumerate(whole):
        for key, value in batch.items():
            for places, part in zip(held, parts, strict=True):
                np.testing.assert_array_equal(value[places], part[k][key], err_msg=key)


@pytest.mark.thorough
def test_towers_come_and_go(pairs, tiny, one_device, workdir, tmp_path):
    """A classifier's encoder becomes an image tower (LiT), and a CLIP's image tower a classifier."""
    image = dict(IMAGE)
    raw = tiny(augment={"size": 16, "train": ["flip"]}, data={"path": "fake:80x16x4", "canvas": 16}, ema=None)
    classifier = one_device({**raw, "model": image})
    state = classifier.init()
    with checkpoint_of(classifier, {**raw, "model": image}, tmp_path / "image", state):
        setup = one_device(pairs(init=str(tmp_path / "image"), ema=None))
        found, said = start.start(setup, workdir)
    assert "its parameters are those of the image_tower, all else is new" in said
    theirs = {k: v for k, v in state.params.items() if k != "head"}
    chex.assert_trees_all_equal(jax.device_get(found.params["image_tower"]), jax.device_get(theirs))

    with checkpoint_of(setup, pairs(ema=None), tmp_path / "pair", found):
        back, said = start.start(one_device({**raw, "model": image, "init": str(tmp_path / "pair")}), workdir)
    assert "only its image_tower is used" in said and "head/kernel is new (absent there)" in said
    assert set(back.params) == {*theirs, "head"}
    chex.assert_trees_all_equal(jax.device_get(back.params["patch"]), jax.device_get(theirs["patch"]))


class checkpoint_of:
    """Writes a checkpoint of a run as the loop does."""

    def __init__(self, setup, raw, folder, state):
        writer = checkpoint.Checkpoints(folder)
        writer.save(1, start.items(state), start.meta(setup, raw, {}), {})
        writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_another_tokenizer_is_refused(pairs, one_device, workdir, tmp_path):
    setup = one_device(pairs())
    with checkpoint_of(setup, pairs(), tmp_path / "run", setup.init()):
        other = dataclasses.replace(setup.train.info.encoder, tokenizer=Reversed(setup.train.info.encoder.tokenizer))
        changed = dataclasses.replace(setup, train=Other(setup.train, other))
        for raises in (
            lambda: start.start(changed, tmp_path / "run"),
            lambda: start.eval_params(changed, tmp_path / "run"),
            lambda: start.start(with_init(changed, tmp_path / "run"), workdir),
        ):
            with pytest.raises(UserError, match="was trained with the tokenizer"):
                raises()


def with_init(setup, source):
    return dataclasses.replace(setup, config=dataclasses.replace(setup.config, init=str(source)))


class Other:
    def __init__(self, source, encoder):
        self.source, self.info = source, dataclasses.replace(source.info, encoder=encoder)


class Reversed:
    """The same tokenizer by another name."""

    fingerprint = "other"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": {"path": "fake:80x16x4"}}, r"'fake:80x16x4' has images without captions; set data.text.templates"),
        ({"data": {"text": None}}, "needs a caption for every image"),
        ({"evaluators": ["retrieval", {"name": "retrieval", "data": "digits_pairs"}]}, "two evaluators report val/"),
        (
            {"objective": {"name": "classify"}, "evaluators": ["classify"], "best": "val/accuracy"},
            "embeds images and texts; take objective='contrast'",
        ),
        ({"optim": {"bounds": (("logit_scale", 5.0, 1.0),)}}, "bounds of 'logit_scale' are 5.0 and 1.0"),
        ({"optim": {"bounds": (("logit_scal", 0.0, 1.0),)}}, r"bounds pattern 'logit_scal' matches no whole parameter"),
        ({"data": {"text": {"tokenizer": "byte", "length": 9}}}, "'byte'; did you mean 'bytes'"),
        ({"data": {"text": {"length": 2}}}, "length=2 is not allowed"),
        ({"batch_size": 1}, "batch_size is 1, and this objective compares pairs; set it to 2 or more"),
        ({"optim": {"sam": "sam(m=1)"}}, "the SAM group size m is 1, and this objective compares pairs"),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(change, text, pairs, one_device):
    with pytest.raises(UserError, match=text):
        one_device(pairs(**change))


@pytest.mark.slow
@pytest.mark.usefixtures("_one_device")
def test_a_temperature_that_is_no_number_stops_the_run(pairs, workdir):
    raw = pairs(optim={"lr": 1e30, "bounds": (), "clip_norm": None, "optimizer": "sgd"}, duration=6)
    with pytest.raises(UserError, match=r"step \d: .*not finite"):
        loop.run(raw, workdir)
