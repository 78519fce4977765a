"""The loop: files, resuming bit for bit, interruptions, non-finite values, hooks."""

import contextlib
import errno
import gc
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import vit_jax as vj
from tests import processes, runs
from vit_jax import checkpoint, metrics
from vit_jax.train import loop
from vit_jax.train.workdir import lock
from vit_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def rows(folder, prefix=("train/", "val/")):
    """Rows of the log without measured speeds."""
    return [{k: v for k, v in r.items() if k == "step" or k.startswith(prefix)} for r in metrics.read(folder)]


@pytest.fixture(autouse=True)
def _one_device():
    with runs.alone():
        yield


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A tiny run to its end: ``folder``, ``result``, and what it ``said``."""
    folder, said = tmp_path_factory.mktemp("trained") / "run", io.StringIO()
    with runs.alone(), contextlib.redirect_stdout(said):
        result = loop.run(tiny(plots=True, profile="3:4"), folder, hooks=[probe])
    return types.SimpleNamespace(folder=folder, result=result, said=said.getvalue())


def probe(moment):
    return {"probe": moment.step / 2} if moment.step == 6 else None


class Stop(Exception):
    pass


def die_at(step):
    def hook(moment):
        if moment.step == step:
            raise Stop

    return hook


def test_a_run_leaves_its_files(trained):
    workdir, result, out = trained.folder, trained.result, trained.said
    names = {p.name for p in workdir.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "inputs.png",
        "curves.png",
        "confusion.png",
        "checkpoints",
        "tensorboard",
        "profile",
    } <= names
    assert f"{workdir}/profile has the trace of steps 3 to 4; look at it with xprof --logdir" in out
    found = rows(workdir)
    assert [r["step"] for r in found if "train/loss" in r] == list(range(1, 11))
    assert [r["step"] for r in found if "val/accuracy" in r] == [7, 10]  # every 7 steps, and at the end
    assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"8", "10"}
    stored = json.loads((GOLDEN / "classify_curve.json").read_text())  # a refactoring must not move it
    np.testing.assert_allclose([r["train/loss"] for r in found if "train/loss" in r], stored, atol=2e-4)
    final = json.loads((workdir / "results.json").read_text())
    assert final["metrics"]["examples"] == 16
    assert final["metrics"]["accuracy"] == result.report.metrics["accuracy"] == found[-1]["val/accuracy"]
    assert "64 training and 16 validation examples" in out and "starts from scratch" in out
    assert "val/accuracy" in out.splitlines()[-8] and out.splitlines()[-1].startswith("results.json, curves.png and")


def test_resuming_is_bit_exact(tiny, trained, workdir, caplog):
    """A run that is killed, and whose newest checkpoint then loses a bit, goes on as if nothing had happened."""
    raw = json.dumps(tiny(checkpoint_every=2))
    die = "lambda moment: os.kill(os.getpid(), 9) if moment.step == 9 else {'probe': 3} if moment.step == 6 else None"
    code = f"import os, json; from vit_jax.train.loop import run; run(json.loads({raw!r}), {str(workdir)!r}, [{die}])"
    env = os.environ | processes.fast()
    killed = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = max((workdir / "checkpoints").glob("*/params/d/*"), key=lambda path: int(path.parents[2].name))
    data = bytearray(found.read_bytes())
    data[len(data) // 2] ^= 1
    found.write_bytes(data)
    result = loop.run(tiny(checkpoint_every=2), workdir, hooks=[probe])
    assert [rows(workdir), result.report.metrics] == [rows(trained.folder), trained.result.report.metrics]
    assert "Trying the checkpoint before it" in caplog.text and list(workdir.glob("checkpoints/damaged-*"))
    assert not list(workdir.glob("*.png"))  # without plots


@pytest.mark.slow
@pytest.mark.parametrize("death", [1, 4, 5, 9])
def test_resuming_is_bit_exact_whenever(tiny, tmp_path, death):
    """Whenever a run dies, the same command gives the uninterrupted curve bit for bit."""
    raw = tiny(data={"path": "digits", "holdout": 360}, augment={"train": ["affine", "mixup"]}, duration=10)
    loop.run(raw, tmp_path / "whole")
    with pytest.raises(Stop):
        loop.run(raw, tmp_path / "cut", hooks=[die_at(death)])
    loop.run(raw, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_finished_run_is_evaluated_again(tiny, trained, workdir, capsys):
    """Under another configuration too, where that leaves the result as it is; any other is refused."""
    shutil.copytree(trained.folder, workdir)
    before = sorted(p.name for p in workdir.rglob("*"))
    with pytest.raises(UserError, match=r"another configuration \(optim.lr: 0.003 -> 0.1; seed: 0 -> 1\)"):
        loop.run(tiny(optim={"lr": 0.1}, seed=1), workdir)
    assert sorted(p.name for p in workdir.rglob("*")) == before
    again = loop.run(tiny(log_every=2, data={"workers": 2}), workdir)
    assert again.report.metrics == trained.result.report.metrics
    assert "resumed at step 10" in capsys.readouterr().out


def test_interruption_saves_and_says_how_to_go_on(tiny, workdir):
    def interrupt(moment):
        if moment.step == 3:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):  # schedulers send theirs again
                os.kill(os.getpid(), number)

    with pytest.raises(UserError, match="stopped at step 3 of 10; the same command resumes there"):
        loop.run(tiny(), workdir, hooks=[interrupt])
    assert (workdir / "checkpoints" / "3").is_dir()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.first(2)
@pytest.mark.parametrize("place", ["Meter.flush", "MetricsWriter.write", "Checkpoints.save", "Progress.show"])
def test_what_an_interruption_promises_is_there(tiny, workdir, monkeypatch, place):
    """The signal comes between two looks at one flag, wherever the loop is; the checkpoint of the sentence exists."""
    owner, method = place.split(".")
    owner, calls = getattr(loop, owner), []
    original = getattr(owner, method)

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(owner, method, interrupted)
    with pytest.raises(UserError, match=r"^stopped at step \d+ of 10; the same command resumes there\.$") as e:
        loop.run(tiny(), workdir)
    step = int(str(e.value).split()[3])
    assert checkpoint.steps(workdir / "checkpoints")[0].name == str(step)
    assert len([row for row in metrics.read(workdir) if "train/loss" in row]) == step


def test_nothing_is_promised_where_saving_fails(tiny, workdir, monkeypatch):
    """Saving goes on in the background: what fails there is found out before anything is said."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save = checkpoint.Checkpoints.save

    def saved(*args):
        save(*args)
        monkeypatch.setattr("orbax.checkpoint.CheckpointManager.wait_until_finished", full)

    def interrupt(moment):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", saved)
    with pytest.raises(UserError, match=r"^cannot save to .*: the disk is full; .*; .*checkpoint.*\.$"):
        loop.run(tiny(), workdir, hooks=[interrupt])


@pytest.mark.parametrize(
    ("step", "kept"), [(2, "there is no checkpoint yet"), (9, "the checkpoint of step 8 is intact")]
)
def test_a_second_interruption_says_what_there_is(tiny, workdir, step, kept):
    def interrupt(moment):
        if moment.step == step:
            if step > 8:
                while not (workdir / "checkpoints" / "8").exists():  # it is on its way to the disk
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match=f"^interrupted; {kept}, and the same command goes on from what there is"):
        loop.run(tiny(), workdir, hooks=[interrupt])
    assert signal.getsignal(signal.SIGINT) == before and not (workdir / "lock").exists()


def test_a_second_interruption_while_garbage_is_collected(tiny, workdir, capsys):
    """What is raised there Python ignores; JAX has a callback of the collector, where a Ctrl-C may fall."""

    def interrupt(moment):
        if moment.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            gc.callbacks.append(callback)
            gc.collect()
            time.sleep(10)

    def callback(*_):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10))  # the handler runs here

    with pytest.raises(loop.Interrupted, match="interrupted; there is no checkpoint yet"):
        loop.run(tiny(), workdir, hooks=[interrupt])
    assert "ignored" not in capsys.readouterr().err


def test_a_run_in_use_is_evaluated_and_not_trained(tiny, trained, workdir):
    """By a second process it is refused before a file is touched; what only reads needs no leave."""
    shutil.copytree(trained.folder, workdir)
    with lock(workdir):
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        with pytest.raises(UserError, match=rf"run' is in use by process {os.getpid()} on .*; wait until it ends"):
            loop.run(tiny(), workdir)
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
        assert vj.evaluate(workdir).metrics == trained.result.report.metrics
    assert not (workdir / "lock").exists()


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "has 0 of at least 13 rows up to step 10"),
        (lambda path: path.write_text(""), "has 0 of at least 13 rows up to step 10"),
        (lambda path: path.write_text("".join(lines(path)[:5])), "has 5 of at least 13 rows up to step 10"),
        (lambda path: path.write_text("".join(lines(path)[3:])), "has 10 of at least 13 rows up to step 10"),
        (lambda path: None, ""),
    ],
    ids=["deleted", "emptied", "cut", "begun later", "whole"],
)
def test_missing_rows_are_said_and_end_nothing(tiny, trained, workdir, capsys, change, sentence):
    """``best`` is the last evaluation's where the log knows none."""
    shutil.copytree(trained.folder, workdir)
    change(workdir / "metrics.jsonl")
    found = loop.run(tiny(), workdir).report.metrics
    said, best = capsys.readouterr().out, json.loads((workdir / "results.json").read_text())["best"]
    assert sentence in said and ("rows up to step" in said) == bool(sentence)
    assert best["val/accuracy"] >= found["accuracy"] and best["step"] in (7, 10)


def test_a_metric_that_the_log_does_not_know_may_be_the_best(tiny, trained, workdir):
    shutil.copytree(trained.folder, workdir)
    found = loop.run(tiny(evaluators=["activity"], best="val/active"), workdir).report.metrics["active"]
    assert json.loads((workdir / "results.json").read_text())["best"] == {"step": 10, "val/active": found}


@pytest.mark.first(1)
@pytest.mark.parametrize("size", [60, 1_500])
def test_a_full_disk_is_one_sentence(tiny, workdir, size, capfd):
    """Whatever meets it first, and though closing fails as well; what is there is gone on with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(moment):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        with pytest.raises(UserError, match="the disk is full; free some space and run the same command again"):
            loop.run(tiny(), workdir, hooks=[fill])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()
    assert not capfd.readouterr().err
    assert loop.run(tiny(), workdir).report.metrics["examples"] == 16


def test_a_workdir_that_is_deleted_is_not_made_anew(tiny, workdir):
    def delete(moment):
        if moment.step == 5:
            while (workdir / "checkpoints" / "4").exists() is False:
                time.sleep(0.01)
            shutil.rmtree(workdir)

    with pytest.raises(UserError, match=r"cannot be written: No such file or directory\."):
        loop.run(tiny(), workdir, hooks=[delete])
    assert not workdir.exists()


def test_non_finite_values_stop_the_run(tiny, workdir):
    """The first bad step and leaf are named; the last good checkpoint stays and the bad one is never written."""
    raw = tiny(optim={"lr": 1e15, "clip_norm": None, "warmup": 0}, log_every=5)
    with pytest.raises(UserError, match=r"step \d+: the gradient of \S+ is the first of \d+ that are not finite") as e:
        loop.run(raw, workdir)
    assert "; there is no checkpoint yet. Lower optim.lr" in str(e.value)
    for folder in (workdir / "checkpoints").glob("[0-9]*"):
        assert int(folder.name) < int(str(e.value).split()[1].rstrip(":"))


def test_hooks_write_rows(trained):
    assert [r for r in metrics.read(trained.folder) if "probe" in r] == [{"step": 6, "probe": 3.0}]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optimm": {}}, "unknown key 'config.optimm'; did you mean 'optim'?"),
        ({"optim": {"optimizer": "adamww"}}, "did you mean 'adamw'?"),
        ({"model": {"name": "vit_b61"}}, "did you mean 'vit_b16'"),
        ({"model": {"depht": 3}}, "unknown key 'config.model.depht'; did you mean 'depth'"),
        ({"batch_size": "many"}, "config.batch_size='many' is of type str, expected int."),
        ({"data": {"path": "fodler:/x"}}, "did you mean 'folder'"),
        ({"data": {"path": "folder:/no/such/place"}}, "/no/such/place"),
        ({"duration": "3 weeks"}, "config.duration='3 weeks' is no duration"),
        ({"duration": 0}, "less than one step"),
        ({"accumulate": 3}, "batch_size=16 is not divisible by 3"),
        ({"optim": {"freeze": ["nothing"]}}, "nothing"),
        ({"augment": {"size": 9}}, "canvas"),
        ({"mesh": {"replica": 3}}, "does not fill the 1 devices"),
        ({"init": "/no/run"}, "/no/run"),
        ({"best": "val/acuracy"}, "val/acuracy"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(tiny, workdir, change, text):
    with pytest.raises(UserError) as e:
        loop.run(tiny(**change), workdir)
    assert text in str(e.value)
    assert "\n" not in str(e.value)
    assert not workdir.exists()


def lines(path):
    return path.read_text().splitlines(keepends=True)
