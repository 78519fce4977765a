"""Where a run starts."""

import contextlib
import shutil
import types

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import models, sharding
from vit_jax.checkpoint import Checkpoints
from vit_jax.convert import write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor
from vit_jax.layers.embed import resize_patches, resize_positions
from vit_jax.models import describe
from vit_jax.train import loop, start
from vit_jax.train.adapt import PATCHES
from vit_jax.trees import nested
from vit_jax.types import UserError


def test_items_and_back(tiny, one_device):
    shapes = one_device(tiny()).shapes
    found = start.items(shapes)
    assert set(found) == {"params", "opt_state", "ema"} and "step" in found["opt_state"]
    assert start.from_items(found, shapes) == shapes
    without = one_device(tiny(ema=None)).shapes
    assert set(start.items(without)) == {"params", "opt_state"}
    assert start.from_items(start.items(without), without) == without


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another run's folder: filled by the first test that needs it, since ``tiny`` lives for one test."""
    return tmp_path_factory.mktemp("other") / "run"


@pytest.fixture
def built(tiny, one_device, other):
    """A setup, its state with every leaf replaced by noise, and a folder with that state at step 5."""
    setup = one_device(tiny())
    noise = np.random.default_rng(0)
    state = jax.tree.map(lambda x: noise.normal(size=x.shape).astype(x.dtype), setup.shapes)
    state = jax.device_put(state.replace(step=np.int32(5)), setup.shardings)
    if not other.exists():
        checkpoints = Checkpoints(other)
        checkpoints.save(5, start.items(state), start.meta(setup, tiny(), {}), {})
        checkpoints.close()
    return setup, state, other


def test_order_of_starts(tiny, one_device, built, workdir):
    """resume > resume_from > init > scratch."""
    setup, state, other = built
    fresh, said = start.start(setup, workdir)
    assert said == "starts from scratch" and int(fresh.step) == 0

    init = one_device(tiny(init=str(other)))
    found, said = start.start(init, workdir)
    assert said == f"starts from {other}/checkpoints/5: every parameter taken as it is"
    assert int(found.step) == 0
    chex.assert_trees_all_equal(found.params, state.ema)  # the average is what was good
    chex.assert_trees_all_equal(found.opt_state, fresh.opt_state)

    found, said = start.start(one_device(tiny(resume_from=str(other))), workdir)
    rate = float(setup.schedule(5))
    peak = f"a learning rate of {rate:.2g}, {rate / 0.003:.0%} of the peak"
    assert said == f"continues {other}/checkpoints/5, at step 5 with {peak}"
    chex.assert_trees_all_equal(found, state)

    found, said = start.start(init, other)  # its own checkpoints come first
    assert said == "resumed at step 5"
    chex.assert_trees_all_equal(found, state)
    assert jax.tree.structure(found) == jax.tree.structure(setup.shapes)


def test_where_in_the_schedule_a_run_goes_on_is_said(tiny, one_device, built, workdir):
    """Also the tail of it, and that nothing is left is an error."""
    _, _, other = built
    said = start.start(one_device(tiny(resume_from=str(other), duration=6)), workdir)[1]
    assert said.endswith("15% of the peak")
    said = start.start(one_device(tiny(resume_from=str(other), duration=6, optim={"warmup": 0})), workdir)[1]
    assert said.endswith("7% of the peak; --config.init would start the schedule anew")
    with pytest.raises(
        UserError, match=r"goes on at step 5, and duration='5 steps' ends at step 5; lengthen --config\."
    ):
        start.start(one_device(tiny(resume_from=str(other), duration=5)), workdir)


def test_init_with_other_classes_and_size(tiny, one_device, built, workdir):
    _, state, other = built
    raw = tiny(init=str(other), data={"path": "fake:80x16x7", "canvas": 16}, augment={"size": 16}, ema=None)
    found, said = start.start(one_device(raw), workdir)
    assert "position/embedding is resized from 2x2 to 4x4" in said and "head/kernel is new (16x4 there)" in said
    assert found.params["head"]["kernel"].shape == (16, 7) and found.ema is None
    expected = resize_positions(state.ema["position"]["embedding"], (2, 2), (4, 4), 0)
    np.testing.assert_array_equal(found.params["position"]["embedding"], expected)


def test_a_model_starts_from_another_structure(rng):
    """Read from the specs of both models: maps of the same path are projected, the rest is taken as it is."""
    fields = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}
    theirs, ours = (models.create("vit", **fields, mlp_linear=spec) for spec in ("dense", "monarch(4)"))
    params = {p: Tensor.of(rng.normal(size=s).astype(np.float32)) for p, s in describe.shapes(theirs, 8).items()}
    found = Stored(theirs, params, Preprocess(8), source="x")
    fresh = nested({p: np.zeros(s, np.float32) for p, s in describe.shapes(ours, 16).items()})
    tree, notes = start.fitted(found, ours, fresh, 16)
    mlp_in = tree["encoder"]["block_0"]["mlp"]["mlp_in"]
    kernel, bias = (params[f"encoder/block_0/mlp/mlp_in/{leaf}"].read() for leaf in ("kernel", "bias"))
    want = ours.mlp_linear.from_dense(kernel, bias)
    assert mlp_in.keys() == want.keys()
    for leaf, value in want.items():
        np.testing.assert_array_equal(mlp_in[leaf], value)
    assert notes[0].startswith("2 linear maps go from dense to monarch(4), off by ")
    assert notes[1].startswith("warning: ") and notes[2:] == ["position/embedding is resized from 2x2 to 4x4"]
    np.testing.assert_array_equal(tree["head"]["kernel"], params["head/kernel"].read())


def test_evaluation_parameters(tiny, one_device, built):
    _, state, other = built
    found, folder = start.eval_params(one_device(tiny(mesh={"replica": 2, "fsdp": 2, "tensor": 2}), n=8), other)
    assert folder == other / "checkpoints" / "5"
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state.ema))
    with pytest.raises(UserError, match="cannot be read"):
        start.eval_params(one_device(tiny(model={"width": 32})), other)


def test_a_state_that_no_device_holds(tiny, one_device, workdir, monkeypatch):
    """Said before anything is drawn, with what would help."""
    setup = one_device(tiny())
    need = sharding.bytes_per_device(setup.shapes, setup.shardings)
    monkeypatch.setattr(sharding, "memory", lambda _: need - 1)
    with pytest.raises(UserError, match=r"of each device, which has .*; take a smaller model, .* mesh\.fsdp"):
        start.start(setup, workdir / "new")
    monkeypatch.setattr(sharding, "memory", lambda _: need)
    assert start.start(setup, workdir / "new")[1] == "starts from scratch"


def test_a_missing_source(tiny, one_device, workdir):
    for key in ("init", "resume_from"):
        with pytest.raises(UserError, match="'/no/run'"):
            start.start(one_device(tiny(**{key: "/no/run"})), workdir)


MODEL = models.create("vit", width=64, depth=2, heads=4, mlp_dim=96, patch=4, num_classes=5)
FORMATS = {"timm": "bicubic", "hf": "bicubic_plain", "npz": "bilinear_corners", "big_vision": "bilinear_corners"}
"""Format -> how its project resizes positions."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Path of a converted checkpoint of 12 px images with patches of 4 px and 5 classes, by format."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("weights")
    model = MODEL.clone(activation="gelu_tanh")
    params = {p: rng.normal(size=s, scale=0.1).astype(np.float32) for p, s in describe.shapes(model, 12).items()}
    params["position/embedding"][:, 0] = 0  # big_vision has no position for the cls token
    leaves = {path: Tensor.of(x) for path, x in params.items()}
    pretrained = Stored(model, leaves, Preprocess(12), tuple("abcde"), resize="bicubic")
    paths = {}
    for to in (*FORMATS, "vit_jax"):
        paths[to] = root / (f"{to}.npz" if "npz" in to or "vision" in to else to)
        write.save(pretrained, paths[to], to)
    return paths, params


@pytest.mark.first(2)
@pytest.mark.parametrize("fmt", [*FORMATS, "vit_jax"])
def test_fine_tuning_from_every_format(fmt, weights, tiny, one_device, workdir):
    """At another resolution and patch size and with other classes: what is taken, and what is said."""
    paths, params = weights
    fields = {"pool": "cls", "patch": 8, "width": 64, "heads": 4, "mlp_dim": 96, "activation": "gelu_tanh"}
    raw = tiny(model=fields, augment={"size": 32}, data={"path": "fake:64x32x4", "canvas": 32}, init=str(paths[fmt]))
    setup = one_device(raw)
    state, how = start.start(setup, workdir)
    for phrase in (
        str(paths[fmt]), "patch/kernel is resized from 4x4 to 8x8 (pseudo-inverse)",
        "position/embedding is resized from 3x3 to 4x4", "head/kernel is new (64x5 there)",
    ):  # fmt: skip
        assert phrase in how
    found = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
    method = FORMATS.get(fmt, "bicubic")
    np.testing.assert_allclose(
        found["position/embedding"],
        resize_positions(params["position/embedding"], (3, 3), (4, 4), 1, method),
        atol=1e-6,
    )
    patch = resize_patches(params["patch/kernel"], 8, PATCHES[method])
    np.testing.assert_allclose(found["patch/kernel"], patch, atol=1e-6)
    for path, value in params.items():
        if not path.startswith(("position", "patch/kernel", "head")):
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    if fmt == "vit_jax":  # all formats give the same state, which trains
        _check_one_step(setup, state)


def _check_one_step(setup, state):
    batches = setup.train_batches(0)
    try:
        with jax.set_mesh(setup.mesh):
            state, row = setup.step(state, sharding.put(next(iter(batches)), setup.mesh))
    finally:
        batches.close()
    assert np.isfinite(float(row["loss"].value() if hasattr(row["loss"], "value") else row["loss"]))
    assert int(state.step) == 1


def test_what_its_parameters_do_not_show_is_said(weights, tiny, one_device, workdir):
    fields = {"pool": "cls", "patch": 4, "width": 64, "heads": 4, "mlp_dim": 96}
    raw = tiny(model=fields, augment={"size": 12, "norm": "imagenet"}, data={"canvas": 12}, init=str(weights[0]["npz"]))
    how = start.start(one_device(raw), workdir)[1]
    assert "activation='gelu_tanh', this one 'gelu' (--config.model.activation=gelu_tanh keeps that)" in how
    assert "normalised otherwise (--config.augment.norm='inception' keeps that)" in how
    raw["model"]["heads"] = 2
    with pytest.raises(UserError, match=r"has 4 heads, the model 2; add --config.model.heads=4"):
        start.start(one_device(raw), workdir)


def test_evaluation_refuses_other_classes(weights, tiny, one_device):
    fields = {"pool": "cls", "patch": 4, "width": 64, "heads": 4, "mlp_dim": 96, "activation": "gelu_tanh"}
    raw = tiny(model=fields, augment={"size": 12}, data={"path": "fake:64x12x5", "canvas": 12})
    with pytest.raises(UserError, match=r"has the classes a, b, c, d, e, the data .* \(first difference: a\)"):
        start.eval_params(one_device(raw), weights[0]["vit_jax"])


def test_variables_of_another_model_are_left_out_and_noted():
    mine = {"batch_stats": {"norm": {"mean": np.zeros(4)}}}
    assert start.fitting(mine, {"batch_stats": {"norm": {"mean": np.ones(4)}}}) == (mine, [])
    assert start.fitting(mine, {"batch_stats": {"norm": {"mean": np.ones(5)}}}) == (
        None,
        ["its batch_stats are not used"],
    )
    assert start.fitting(mine, {}) == (None, ["its batch_stats are not used"]) and start.fitting({}, mine) == (None, [])


def test_variables_follow_the_image_encoder():
    alone = {"batch_stats": {"norm": {"mean": np.zeros(4)}}}
    inside = {"batch_stats": {"image_tower": alone["batch_stats"]}}
    image, pair = models.create("vit_ti16"), models.create("clip_vit_b32")
    for variables, theirs, ours, want in (
        (alone, image, image, alone),
        (inside, pair, pair, inside),
        (alone, image, pair, inside),
        (inside, pair, image, alone),
        ({"ranges": {"text_tower": {}}}, pair, image, {}),
    ):
        assert start.moved(types.SimpleNamespace(model=theirs, variables=variables), ours) == want


@pytest.fixture(scope="module")
def resumable(tiny, alone, tmp_path_factory):
    """A run on images of cats and dogs, stopped at step 2, its data beside it; copy both before changing them."""
    place = tmp_path_factory.mktemp("resumable")
    for name, shade in (("cat", 40), ("dog", 200)):
        for i in range(12):
            image(place / "data" / name / f"{i:03d}.png", shade + i)
    with alone(), contextlib.chdir(place):
        loop.run(folder_run(tiny), "run")
    return place


def image(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)


def folder_run(tiny, **changes):
    data = {"path": "folder:data", "holdout": 4}
    return tiny(**{"data": data, "duration": 2, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2, **changes})


def more(place):
    for i in range(3):
        image(place / "cat" / f"new{i}.png", i)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: (data / "dog").rename(data / "a_dog"), "has the classes cat, dog, the data a_dog, cat"),
        (lambda data: (data / "dog").rename(data / "hound"), "has the classes cat, dog, the data cat, hound"),
        (lambda data: image(data / "eel" / "0.png", 0), "has the classes cat, dog, the data cat, dog, eel"),
    ],
    ids=["another order", "another name", "one more"],
)
def test_other_classes_are_refused_on_resume(resumable, tiny, alone, tmp_path, monkeypatch, change, sentence):
    """As ``evaluate`` refuses them; nothing is taken for damaged, and no key allows it."""
    place = shutil.copytree(resumable, tmp_path / "place")
    monkeypatch.chdir(place)
    change(place / "data")
    before = sorted(path.name for path in (place / "run").rglob("*"))
    for changes in ({}, {"accept_changed_data": True}):
        with alone(), pytest.raises(UserError, match=f"{sentence}.*; give data.path the classes of training"):
            loop.run(folder_run(tiny, **changes), "run")
    with alone(), pytest.raises(UserError, match=sentence):
        loop.run(folder_run(tiny, resume_from="run"), "another")
    assert sorted(path.name for path in (place / "run").rglob("*")) == before


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (more, "23 training examples, not 20"),
        (lambda data: (data / "cat" / "003.png").unlink(), "19 training examples, not 20"),
        (
            lambda data: (data / "cat" / "003.png").rename(data / "cat" / "999.png"),
            "other training examples, labels or",
        ),
        (
            lambda data: (data / "cat" / "003.png").rename(data / "dog" / "003x.png"),
            "other training examples, labels or",
        ),
    ],
    ids=["more", "fewer", "another name", "another label"],
)
def test_changed_data_is_refused_on_resume(resumable, tiny, alone, tmp_path, monkeypatch, change, sentence):
    place = shutil.copytree(resumable, tmp_path / "place")
    monkeypatch.chdir(place)
    change(place / "data")
    log = (place / "run" / "metrics.jsonl").read_text()
    with alone(), pytest.raises(UserError, match=rf"has changed since \({sentence}.*accept_changed_data=True"):
        loop.run(folder_run(tiny), "run")
    assert (place / "run" / "metrics.jsonl").read_text() == log


def test_changed_data_is_accepted_if_the_user_says_so(resumable, tiny, alone, tmp_path, monkeypatch, capsys):
    """What is resumed then is said, and compared with the data of then."""
    place = shutil.copytree(resumable, tmp_path / "place")
    monkeypatch.chdir(place)
    (place / "data" / "cat" / "003.png").unlink()
    with alone():
        loop.run(folder_run(tiny, accept_changed_data=True), "run")
        first = capsys.readouterr().out
        loop.run(folder_run(tiny, resume_from="run", duration=3), "longer")
    assert "resumed at step 2, with changed data (19 training examples, not 20" in first
    assert "continues run/checkpoints/2, with changed data (19 training examples, not 20" in capsys.readouterr().out


def test_the_same_data_elsewhere_is_the_same(resumable, tiny, alone, tmp_path, monkeypatch, capsys):
    place = shutil.copytree(resumable, tmp_path / "place")
    monkeypatch.chdir(place)
    with alone():
        loop.run(folder_run(tiny), "run")
    assert "resumed at step 2\n" in capsys.readouterr().out
