"""The folder of a run: whose it is."""

import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import pytest

import vit_jax
from vit_jax.config import parse
from vit_jax.train import workdir
from vit_jax.train.config import TrainConfig
from vit_jax.types import UsageError, UserError

RAW = {
    "seed": 0,
    "model": {"name": "vit", "scan": False},
    "data": {"path": "digits", "workers": 1},
    "optim": {"pair": (1, 2)},
}
FREE = (
    "mesh", "log_every", "keep", "best", "eval_batch_size", "model.scan", "model.remat",
    "data.workers", "data.prefetch",
)  # fmt: skip


def test_claim_then_load(tmp_path):
    folder = tmp_path / "a" / "b"
    workdir.check(folder, RAW)  # nothing there: anybody's
    workdir.claim(folder, RAW)
    assert workdir.load(folder) == json.loads(json.dumps(RAW)) == workdir.plain(RAW)
    assert os.listdir(folder) == ["config.json"]
    workdir.check(folder, RAW)  # a tuple is a list by now, and still the same


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "(seed: 0 -> 1) --config.seed=1"),
        ({"seed": 1, "keep": 9, "new": 2}, "(new: None -> 2; seed: 0 -> 1) --config.new=2 --config.seed=1"),
        ({"model": {"name": "mixer", "scan": True}}, "(model.name: 'vit' -> 'mixer') --config.model.name=mixer"),
        ({"data": {"path": "a b", "workers": 9}}, "(data.path: 'digits' -> 'a b') '--config.data.path=a b'"),
        ({"init": "x"}, "(init: None -> 'x') --config.init=x"),
    ],
)
def test_another_run_is_refused_with_the_difference_and_the_command(tmp_path, change, text):
    workdir.claim(tmp_path, RAW)
    with pytest.raises(UsageError) as e:
        workdir.check(tmp_path, {**RAW, **change}, FREE)
    what, _, words = text.partition(") ")
    assert str(e.value) == (
        f"{tmp_path} holds a run with another configuration {what}); use the old values, or train on in a new workdir: "
        f"vit_jax train --config {tmp_path} {words} --config.init={tmp_path} --workdir NEW takes its parameters and "
        f"starts the schedule anew, --config.resume_from={tmp_path} in place of --config.init keeps optimizer and "
        "step, at which the new schedule goes on."
    )


def test_many_changes_are_no_command(tmp_path):
    workdir.claim(tmp_path, {**RAW, "init": "x"})
    with pytest.raises(UsageError) as e:
        workdir.check(tmp_path, {**RAW, "init": "x", **{f"key{i}": i for i in range(5)}}, FREE)
    command = f"vit_jax train --config {tmp_path} --config.init={tmp_path} --workdir NEW with those"
    assert command in str(e.value)


def test_a_default_may_be_said_or_not(tiny, tmp_path):
    """The difference is told the shorter way, and what is the same is none."""
    raw = tiny()
    whole = workdir.complete(parse(TrainConfig, raw))
    assert parse(TrainConfig, whole) == parse(TrainConfig, raw) and whole["accumulate"] == 1
    assert whole["model"]["name"] == "vit" and whole["duration"] == "10 steps"
    workdir.claim(tmp_path, raw)
    workdir.check(tmp_path, whole)
    workdir.claim(tmp_path, whole)
    workdir.check(tmp_path, raw)
    with pytest.raises(UsageError, match=r"another configuration \(optim\.lr: 0\.003 -> 0\.1\); use"):
        workdir.check(tmp_path, {**raw, "optim": {**raw["optim"], "lr": 0.1}})


@pytest.mark.first(3)
@pytest.mark.parametrize(
    "change",
    [
        {"mesh": {"fsdp": 8}}, {"log_every": 3}, {"keep": 4}, {"best": "val/loss"}, {"eval_batch_size": 7}, {},
        {"model": {"name": "vit", "scan": True, "remat": "full"}},
        {"data": {"path": "digits", "workers": 4, "prefetch": 2}},
    ],
)  # fmt: skip
def test_what_leaves_the_result_as_it_is_may_change(tmp_path, change):
    workdir.claim(tmp_path, RAW)
    workdir.check(tmp_path, {**RAW, **change}, FREE)


def test_allowed_keys_are_whole_keys(tmp_path):
    """ "keep" does not allow "keep_all", nor "mesh" "mesh_shape"."""
    workdir.claim(tmp_path, RAW)
    with pytest.raises(UsageError, match="keep_all"):
        workdir.check(tmp_path, {**RAW, "keep_all": True}, FREE)


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: config.json is missing; give the --workdir of a training"):
        workdir.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match=r"holds checkpoints but no config\.json"):
        workdir.check(tmp_path, RAW)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"config.json is no JSON \(.*\); restore it or train in a new workdir"):
        workdir.check(tmp_path, RAW)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; or choose another"):
        workdir.claim(file / "below", RAW)


DEEP = [n * '{"a":' + "1" + n * "}" for n in (100, 330, 490, 900, 990, 5_000)]


@pytest.mark.parametrize("text", ["[1]", "null", '"a"', "3", '{"seed": 0', 100_000 * "[", *DEEP])
def test_a_config_of_something_else_is_a_sentence(tmp_path, text):
    """Also where it nests too deep for what compares it."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config|another configuration") as e:
        workdir.check(tmp_path, RAW)
    assert len(str(e.value)) < 900 and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["config.json", "lock", "metrics.jsonl", "results.json", "checkpoints", "tensorboard"])
def test_what_is_in_the_way_is_found_before_training(tmp_path, name):
    if name in ("checkpoints", "tensorboard"):
        (tmp_path / name).write_text("x")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=rf"{name} is in the way of a (file|folder) of that name; move it"):
        workdir.check(tmp_path, RAW)


def test_an_empty_name_is_no_workdir():
    with pytest.raises(
        UsageError, match=r"the workdir is empty \(a variable that is not set\?\); name a folder, '\.' for"
    ):
        workdir.place("")
    assert str(workdir.place(".")) == "." and str(workdir.place(" ")) == " "


def test_a_workdir_is_for_one_process(tmp_path):
    folder = tmp_path / "a" / "run"
    with workdir.lock(folder):
        owner = rf"process {os.getpid()} on {re.escape(socket.gethostname())} since \d{{4}}-"
        sentence = rf"run' is in use by {owner}.*; wait until it ends, or name another"
        with pytest.raises(UserError, match=sentence), workdir.lock(folder):
            raise AssertionError("two at once")
        assert os.listdir(folder) == ["lock"]
    assert not (tmp_path / "a").exists()  # made for nothing
    folder.mkdir(parents=True)
    (folder / "lock").write_text("process 1 on another since yesterday")  # which was killed
    with workdir.lock(folder):
        assert str(os.getpid()) in (folder / "lock").read_text()
        (folder / "config.json").touch()
    assert os.listdir(folder) == ["config.json"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import pathlib, sys, time; from vit_jax.train import workdir\n"
        "with workdir.lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    root = pathlib.Path(vit_jax.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, env=env) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=rf"is in use by process {other.pid} on"), workdir.lock(tmp_path):
            raise AssertionError("two at once")
        other.kill()
        other.wait()
    assert f"process {other.pid}" in (tmp_path / "lock").read_text()
    with workdir.lock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), workdir.lock(tmp_path):
        assert "lock cannot be locked (No locks available): see to it that no second run writes there" in caplog.text


def test_a_lock_that_vanished_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The file that was opened is removed by its holder before it is locked: that lock would keep nobody out."""
    flock, removed = fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.append(os.unlink(tmp_path / "lock"))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with workdir.lock(tmp_path), pytest.raises(UserError, match="is in use by process"), workdir.lock(tmp_path):
        raise AssertionError("two at once")


def test_places_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "victim")
    for name, sentence in [
        ("file", r"file' is a file; name a folder"),
        ("file/below", r"cannot be written \(Not a directory\)"),
        ("x" * 300, r"cannot be written \(File name too long\)"),
        ("a\0b", r"cannot be written \(embedded null byte\)"),
        ("run", r"cannot be written \(Too many levels of symbolic links\)"),
    ]:
        with pytest.raises(UserError, match=sentence), workdir.lock(tmp_path / name):
            raise AssertionError("locked")
    assert (tmp_path / "victim").read_text() == "mine"


def test_provenance():
    found = workdir.provenance()
    assert found["vit_jax"] == vit_jax.__version__ and found["jax"] == jax.__version__
    assert found["devices"] == "8 x cpu" and found["command"] == sys.argv
    assert json.loads(json.dumps(found)) == found
    assert found.keys() > {"commit", "record"} and found["images"].startswith("pillow ")
