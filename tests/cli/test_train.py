"""``train``: what a run leaves, and the dry run that leaves nothing."""

import json
import shutil
import sys

import pytest

from vit_jax import metrics
from vit_jax.cli import main
from vit_jax.config import load, parse
from vit_jax.train import setup
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build, describe


def test_a_run_leaves_its_files(run):
    names = {p.name for p in run.workdir.iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "curves.png", "confusion.png", "checkpoints"} <= names
    assert json.loads((run.workdir / "results.json").read_text())["metrics"]["examples"] == 8
    rows = metrics.read(run.workdir)  # of three steps every one is in the log
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]


def test_a_dry_run_says_sizes_and_writes_nothing(run, tmp_path, capsys):
    argv = [
        "train",
        "--config",
        str(run.config),
        "--workdir",
        str(tmp_path / "w"),
        "--dry_run",
        "--config.model.width=32",
    ]
    assert main(argv) == 0
    note, *lines = capsys.readouterr().out.splitlines()
    rows = dict(line.strip().split("  ", 1) for line in lines)
    assert note.startswith("data: of the 30 examples")
    expected = describe(build(parse(TrainConfig, load(str(run.config), [("model.width", "32")]))))
    assert rows["parameters"].strip() == f"{expected['parameters']:,}"
    assert rows["state bytes per device"].strip() == f"{expected['state bytes per device']:,}"
    assert float(rows["FLOPs per step"]) == pytest.approx(expected["FLOPs per step"], rel=1e-5)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("dry", [["--dry_run"], []])
def test_a_logger_that_is_not_installed_is_said_before_anything(run, tmp_path, monkeypatch, capsys, dry):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(setup, "build", None)
    argv = ["train", "--config", str(run.config), "--workdir", str(tmp_path / "w"), "--config.loggers=wandb", *dry]
    assert main(argv) == 1
    assert "[wandb]', or leave wandb out" in capsys.readouterr().err and not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("override", "status", "text"),
    [
        ("--config.optimm.lr=1", 2, "unknown key 'config.optimm'; did you mean 'optim'?"),
        ("--config.batch_size=many", 2, "config.batch_size='many' is of type str, expected int."),
        ("--config.batch_size=12", 2, "batch_size=12 is not divisible by 8"),
        ("--config.best=val/acc", 2, "best='val/acc' is no metric of the evaluators"),
        ("--config.data.path=folder:/no", 1, "/no"),
        ("--config.model.patch=3", 1, "image size 8x8 is not divisible by the patch size 3"),
        ("--config.data.holdout=0", 1, "holdout"),
    ],
)
def test_mistakes_leave_nothing(run, tmp_path, capsys, override, status, text):
    assert main(["train", "--config", str(run.config), "--workdir", str(tmp_path / "w"), override]) == status
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_another_configuration_in_the_same_workdir(run, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.workdir.rglob("*")}
    assert main(["train", "--config", str(run.config), "--workdir", str(run.workdir), "--config.optim.lr=1.0"]) == 2
    assert "holds a run with another configuration (optim.lr: 0.003 -> 1.0)" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in run.workdir.rglob("*")} == before


def test_a_workdir_alone_is_resumed(run, tmp_path, capsys):
    """With its own configuration, in which what leaves the result as it is may be changed."""
    place = shutil.copytree(run.workdir, tmp_path / "run")
    assert main(["train", "--workdir", str(place), "--config.keep=5"]) == 0
    assert "; resumed at step 3\n" in capsys.readouterr().out
    assert json.loads((place / "config.json").read_text())["keep"] == 5
    assert main(["train", "--workdir", str(place), "--config.optim.lr=1.0"]) == 2
    assert f"vit_jax train --config {place} --config.optim.lr=1.0 --config.init={place} --w" in capsys.readouterr().err
    assert main(["train", "--workdir", str(tmp_path / "no")]) == 2
    assert "no' holds no run to resume (config.json is missing); name what to train with --config: a file, or one " in (
        capsys.readouterr().err
    )


def test_what_is_to_be_known_of_the_data_is_said(run, tmp_path, capsys):
    argv = ["train", "--config", str(run.config), "--workdir", str(tmp_path / "w"), "--dry_run"]
    assert main([*argv, "--config.batch_size=32"]) == 0
    out = capsys.readouterr().out
    assert f"data: of the 30 examples of folder:{run.images}, 8 are held out (holdout=8); they alone are scored." in out
    assert "a batch of 32 is more than the 22 training examples: every step sees each of them 1.45 times on" in out
    assert main([*argv, f"--config.data.val=folder:{run.images}"]) == 0
    assert capsys.readouterr().out.startswith("  parameters")


@pytest.mark.parametrize(
    ("override", "status", "says"),
    [
        ("init=/nope", 1, "'/nope' does not exist"),
        ("init=hf://../../x", 1, "hf://../../x"),
        ("init=hf://a", 1, "write hf://ORG/NAME"),
        ("init=vit_ti16.nothing", 1, "'vit_ti16.nothing' does not exist"),
        ("init={folder}", 1, "holds no weights"),
        ("resume_from=/etc/passwd", 1, "no checkpoint at '/etc/passwd'"),
        ("resume_from={folder}", 1, "no checkpoint in"),
        ("init=hf://google/vit-base-patch16-224", 0, ""),
        ("init={run}", 0, ""),
        ("evaluators=classify, knn(data='folder:/nope')", 1, "'folder:/nope' does not exist"),
        ("objective=distill(teacher='/nope')", 1, "the teacher of objective='distill': '/nope' does not exist"),
        ("resume_from={run}", 0, ""),
    ],
)
def test_a_dry_run_looks_at_what_it_starts_from(run, tmp_path, capsys, override, status, says):
    (tmp_path / "a.txt").touch()
    given = override.format(folder=tmp_path, run=run.workdir)
    argv = ["train", "--config", str(run.config), "--workdir", str(tmp_path / "w"), "--dry_run", f"--config.{given}"]
    assert main(argv) == status
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == (status > 0)
