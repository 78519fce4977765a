"""A teacher from a folder: what is checked before the first step, and distillation through the whole of training."""

import contextlib
import io
import json
import shutil
import types

import jax
import numpy as np
import pytest

from vit_jax import checkpoint, metrics, sharding
from vit_jax.cli import main
from vit_jax.train import loop, start
from vit_jax.types import UserError

SPARSE = {"mlp_linear": "sparse24(mask='frozen', bits=8)", "dropout": 0.0}


@pytest.fixture
def _one_device(alone):
    with alone():
        yield


@pytest.fixture(scope="module")
def dense(tiny, alone, tmp_path_factory):
    """The workdir of a dense run."""
    folder = tmp_path_factory.mktemp("teacher") / "dense"
    raw = tiny(data={"path": "digits", "holdout": 360}, model={"dropout": 0.0}, duration=40, eval_every=40)
    with alone():
        loop.run({**raw, "checkpoint_every": 40}, folder)
    return folder


@pytest.fixture(scope="module")
def student(tiny, dense):
    """``student(...)``: a sparse run that starts from its teacher."""

    def make(objective=(), **changes):
        raw = tiny(data={"path": "digits", "holdout": 360}, model=SPARSE, init=str(dense))
        raw["objective"] = {"name": "distill", "teacher": str(dense), "blocks": 2, **dict(objective)}
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) else value
        return raw

    return make


def rows(folder, prefix=("train/", "val/")):
    """Rows of the log without measured speeds."""
    return [{k: v for k, v in r.items() if k == "step" or k.startswith(prefix)} for r in metrics.read(folder)]


class Stop(Exception):
    pass


def die(moment):
    if moment.step == 6:
        raise Stop


@pytest.fixture(scope="module")
def trained(student, dense, alone, tmp_path_factory):
    """A sparse student's run to its end: ``raw``, ``folder``, its ``teacher``'s folder, and what it ``said``."""
    root, said = tmp_path_factory.mktemp("student"), io.StringIO()
    shutil.copytree(dense, root / "teacher")
    raw = student({"teacher": str(root / "teacher")}, optim={"lr": 3e-4, "warmup": 0}, duration=20, eval_every=20)
    with alone(), contextlib.redirect_stdout(said):
        loop.run(raw, root / "run")
    return types.SimpleNamespace(raw=raw, folder=root / "run", teacher=root / "teacher", said=said.getvalue())


@pytest.mark.thorough
def test_a_sparse_student_learns_from_the_dense_run_and_keeps_its_zeros(trained):
    assert f"the teacher is {trained.teacher}/checkpoints/40: every parameter taken as it is" in trained.said
    found = rows(trained.folder)
    names = ("loss", "hard", "soft", "feature", "accuracy", "agreement")
    steps = [r for r in found if "train/loss" in r]
    for r in steps:
        total = r["train/hard"] + r["train/soft"] + r["train/feature"]
        np.testing.assert_allclose(r["train/loss"], total, rtol=1e-5)
        assert all(np.isfinite(r[f"train/{name}"]) for name in names)
    first, last = ([r["train/soft"] + r["train/feature"] for r in part] for part in (steps[:5], steps[-5:]))
    assert np.mean(last) < np.mean(first)
    tree, _, _ = checkpoint.load_params(trained.folder)
    for i in range(2):
        kernel = np.asarray(tree["encoder"][f"block_{i}"]["mlp"]["mlp_in"]["kernel"])
        assert set(np.count_nonzero(kernel.reshape(-1, 4, kernel.shape[1]), 1).ravel()) == {2}


@pytest.mark.thorough
@pytest.mark.usefixtures("_one_device")
def test_a_student_resumes_bit_for_bit(trained, tmp_path):
    with pytest.raises(Stop):
        loop.run(trained.raw, tmp_path / "cut", hooks=[die])
    loop.run(trained.raw, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(trained.folder)


@pytest.mark.thorough
@pytest.mark.usefixtures("_one_device")
def test_without_its_teacher_a_student_is_evaluated_but_not_trained(trained, tmp_path):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    hidden = trained.teacher.rename(trained.teacher.with_name("moved"))
    try:
        assert main(["evaluate", "--workdir", str(run), "--json", str(tmp_path / "x.json")]) == 0
        again = json.loads((tmp_path / "x.json").read_text())
        assert again["val/accuracy"] == rows(run)[-1]["val/accuracy"]
        with pytest.raises(UserError, match=r"the teacher of objective='distill': .*/teacher"):
            loop.run({**trained.raw, "seed": 1}, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        shutil.rmtree(run / "checkpoints" / "20")
        with pytest.raises(UserError, match=r"the teacher of objective='distill': .*/teacher"):
            loop.run(trained.raw, run)
    finally:
        hidden.rename(trained.teacher)


def curve(setup, steps=3):
    """Metrics of the first steps."""
    out = []
    with jax.set_mesh(setup.mesh):
        state, batches = setup.init(), setup.train_batches(0)
        for _ in range(steps):
            state, found = setup.step(state, sharding.put(next(batches), setup.mesh))
            out.append([float(found[k]) for k in ("loss", "hard", "soft", "feature", "accuracy", "agreement")])
        batches.close()
    return np.array(out)


@pytest.mark.thorough
@pytest.mark.parametrize("sam", [None, pytest.param("sam(rho=0.1)", marks=pytest.mark.slow)])
def test_meshes_and_accumulation_agree(student, one_device, sam):
    raw = student(init=None, optim={"sam": sam, "optimizer": "sgd", "lr": 0.1})
    single = curve(one_device(raw))
    many = {"accumulate": 2, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}
    np.testing.assert_allclose(curve(one_device({**raw, **many}, n=8)), single, atol=2e-5)


@pytest.mark.thorough
def test_the_student_at_its_teachers_place_differs_by_nothing(student, one_device, dense):
    raw = student(model={"mlp_linear": "dense"})
    setup = one_device(raw)
    state, _ = start.start(setup, dense / "nowhere")
    batches = setup.train_batches(0)
    with jax.set_mesh(setup.mesh):
        _, found = setup.step(state, sharding.put(next(batches), setup.mesh))
    batches.close()
    assert abs(float(found["soft"])) < 1e-6 and float(found["feature"]) < 1e-9 and float(found["agreement"]) == 1


def test_the_teacher_is_an_argument_of_the_program(student, one_device):
    """None of its parameters is written into the program, and on a mesh they are laid out like a student's."""
    setup = one_device(student(), n=1)
    with jax.set_mesh(setup.mesh):
        lowered = setup.step.lower(setup.shapes, setup.batch_shapes)
    taught = setup.step.frozen_inputs()
    leaves = len(jax.tree.leaves((setup.shapes, setup.batch_shapes)))
    assert len(jax.tree.leaves(lowered.args_info)) == leaves + len(jax.tree.leaves(taught.params))
    constants = [line for line in lowered.as_text().splitlines() if "stablehlo.constant" in line]
    assert max(map(len, constants)) < 1500  # the smallest kernel would take 4,096 digits; positions are learned
    wide = one_device(student(model={"mlp_dim": 32}, mesh={"replica": 2, "fsdp": 1, "tensor": 4}), n=8)
    specs = {str(x.sharding.spec) for x in jax.tree.leaves(wide.step.frozen_inputs().params)}
    assert any("tensor" in spec for spec in specs)


@pytest.mark.thorough
def test_another_image_size(student, one_device, capsys):
    setup = one_device(student({"feature": 0}, augment={"size": 16}, data={"canvas": 16}, init=None))
    taught = setup.step.frozen_inputs()
    assert taught.params["position"]["embedding"].shape == (1, 16, 16)
    said = capsys.readouterr().out
    assert "position/embedding is resized from 2x2 to 4x4" in said and "images of 8 px and sees 16 px" in said
    logits = taught.apply(taught.params, np.zeros((2, 16, 16, 3), np.float32), train=False)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("objective", "changes", "text"),
    [
        ({"teacher": "/no/run"}, {}, r"the teacher of objective='distill': .*/no/run"),
        ({}, {"data": {"path": "fake:80x8x4", "holdout": 16}}, r"has the classes 0, 1, 2, .*--config.objective.soft=0"),
        (
            {},
            {"model": {"width": 32}},
            r"\[tokens=4, channels=16\], the student's \[4, 32\]; .*--config.objective.feature=0",
        ),
        ({}, {"model": {"pool": "cls"}}, r"\[tokens=4, channels=16\], the student's \[5, 16\]"),
        ({}, {"augment": {"norm": "imagenet"}}, r"normalised otherwise .* --config.augment.norm='inception'"),
        (
            {"output_activation": "sigmoid"},
            {},
            r"'softmax', this run for 'sigmoid'; add --config.objective.output_activation=softmax",
        ),
        ({"blocks": 3}, {}, r"blocks=3 are more than there are; set --config.objective.blocks=2"),
    ],
)
@pytest.mark.usefixtures("_one_device")
def test_a_wrong_teacher_is_a_sentence_and_leaves_nothing(student, tmp_path, objective, changes, text):
    raw = student(objective, init=None, **changes)
    with pytest.raises(UserError, match=text) as e:
        loop.run(raw, tmp_path / "run")
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_other_classes_and_widths_where_they_do_not_matter(student, one_device):
    one_device(student({"soft": 0}, init=None, data={"path": "fake:80x8x4", "holdout": 16})).step.frozen_inputs()
    one_device(student({"feature": 0}, init=None, model={"width": 32})).step.frozen_inputs()
