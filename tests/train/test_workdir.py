"""The folder of a run: whose it is."""

import json
import os
import sys

import jax
import pytest

import vit_jax
from vit_jax.train import workdir
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
        ({"seed": 1}, "(seed: 0 -> 1)"),
        ({"seed": 1, "keep": 9, "new": 2}, "(new: None -> 2; seed: 0 -> 1)"),
        ({"model": {"name": "mixer", "scan": True}}, "(model.name: 'vit' -> 'mixer')"),
        ({"data": {"path": "x", "workers": 9}}, "(data.path: 'digits' -> 'x')"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, change, text):
    workdir.claim(tmp_path, RAW)
    with pytest.raises(UsageError) as e:
        workdir.check(tmp_path, {**RAW, **change}, FREE)
    assert str(e.value) == (
        f"{tmp_path} holds a run with another configuration {text}; use a new --workdir, or the old values."
    )


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
    with pytest.raises(UsageError, match=r"file' is a file; name a folder"):
        workdir.check(file, RAW)
    with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another"):
        workdir.claim(file / "below", RAW)


def test_provenance(monkeypatch):
    found = workdir.provenance()
    assert found["vit_jax"] == vit_jax.__version__ and found["jax"] == jax.__version__
    assert found["devices"] == "8 x cpu" and found["command"] == sys.argv
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setenv("PATH", "")  # no git, no commit
    assert workdir.provenance()["commit"] is None
