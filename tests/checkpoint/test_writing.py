"""Writing: what is kept, full disks, lost folders."""

import errno
import logging
import os
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.checkpoint.conftest import META, items, like, names, restored, save
from vit_jax.__main__ import main
from vit_jax.checkpoint import Checkpoints, load_params, noise, restore
from vit_jax.io import retry
from vit_jax.types import UserError


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("best", "values", "kept"),
    [
        ("val/accuracy", [0.1, 0.9, 0.3, None, 0.5, 0.4], [2, 5, 6]),
        ("val/loss", [0.1, 0.9, 0.3, None, 0.5, 0.4], [1, 5, 6]),
        ("val/ece", [0.4, 0.1, 0.3, None, 0.5, 0.4], [2, 5, 6]),
        ("val/accuracy", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [5, 6]),
        ("val/loss", [0.5, 0.1, float("nan"), None, 0.3, 0.4], [2, 5, 6]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, best, values, kept):
    save(tmp_path, {i: {} if v is None else {best: v} for i, v in enumerate(values, 1)}, keep=2, best=best)
    assert names(tmp_path) == kept
    save(tmp_path, {7: {best: 0.45}}, keep=1, best=best)  # another process goes on and remembers which was best
    assert names(tmp_path) == sorted({kept[0] if len(kept) == 3 else 6, 7})
    save(tmp_path, {8: {"val/other": 0.1}}, keep=1, best="val/other")  # and may from now on judge by another metric
    assert names(tmp_path) == [8]


def test_a_folder_that_is_gone_is_said(run):
    """Deleted or moved while the run goes on: it is not made anew, to hold one checkpoint and nothing else."""
    with (
        pytest.raises(UserError, match=r"cannot save to .*: the folder was deleted or moved.*; there is no checkpoint"),
        Checkpoints(run) as checkpoints,
    ):
        shutil.rmtree(run)
        checkpoints.save(12, items(12), META, {})
    assert not run.exists()


def test_closing_leaves_an_error_under_way(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    with pytest.raises(UserError, match="the disk is full"), Checkpoints(run):
        pass
    with pytest.raises(ZeroDivisionError), Checkpoints(run):
        raise ZeroDivisionError


def test_a_failing_disk_is_a_sentence(run):
    """A real failure, while arrays are written in the background: files may not grow beyond 1 MiB."""
    checkpoints = Checkpoints(run)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=2**20).astype(np.float32))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, old[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot save to .*: the disk is full; .*; the checkpoint of step 8 is intact\.$"
        ):
            checkpoints.save(12, {"params": {"noise": noise}}, META, {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    checkpoints.close()
    assert restore(run, like(items(8)))[0] == 8
    save(run, {12: {}})  # once there is space, the step is saved
    assert restore(run, like(items(8)))[0] == 12


@pytest.fixture
def failing(run, monkeypatch):
    """``failing(times)``: so many of the next saves leave a part of themselves, and an error that passes."""
    left, wait = [], ocp.CheckpointManager.wait_until_finished
    monkeypatch.setattr(retry, "WAITS", (0.0,) * 3)

    def fail(manager):
        wait(manager)
        if left and (step := max(names(run))) > 8:
            left.pop()
            folder = run / "checkpoints"
            (folder / str(step)).rename(folder / f"{step}.orbax-checkpoint-tmp")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
    return lambda times: left.extend([None] * times)


def test_a_save_that_fails_for_a_while_is_made_again(run, failing):
    """Where the arrays are still there, as at the end of a run and where it was asked to stop."""
    with Checkpoints(run) as checkpoints:
        failing(2)
        checkpoints.save(12, items(12), META, {})
        checkpoints.wait()
    assert names(run) == [8, 12] and restored(run, 12)[0] == 12


def test_a_command_whose_storage_gave_up_leaves_before_python_ends(run, failing, monkeypatch):
    """Python would destroy what the storage left, which has been seen to wait for ever."""
    left = []
    monkeypatch.setattr(noise, "GAVE_UP", threading.Event())
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr("vit_jax.cli.main", lambda: 3)
    assert main() == 3 and not left
    with Checkpoints(run) as checkpoints:
        failing(1)
        checkpoints.save(12, items(12), META, {})
    main()
    assert left == [3]


def test_a_save_that_was_lost_is_said_and_the_next_takes_its_place(run, failing, caplog):
    with Checkpoints(run) as checkpoints:
        for times, step in ((1, 12), (1, 13), (0, 14)):
            gone = items(step)
            checkpoints.save(step, gone, META, {})
            failing(times)
            if times:
                jax.tree.map(lambda x: x.delete(), gone)
    assert names(run) == [8, 14]
    assert caplog.text.count("could not be written (Input/output error); the next one takes its place") == 2


def test_saves_that_go_on_failing_end_the_run(run, failing):
    says = r"cannot save to .*: Input/output error; the checkpoint of step 8 is intact"
    with pytest.raises(UserError, match=says), Checkpoints(run) as checkpoints:
        for step in range(12, 20):
            checkpoints.save(step, items(step), META, {})
            failing(1)
    assert step == 15


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: Error writing 'a'"),  # as tensorstore says it
    ],
)
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError) as e:
        checkpoints.save(12, {}, META, {})
    checkpoints.close()
    assert str(e.value) == (
        f"cannot save to {tmp_path / 'checkpoints'}: the disk is full; free some space and run the same command again; "
        "there is no checkpoint yet."
    )


def test_a_place_that_cannot_hold_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"cannot save to .*/checkpoints: "):
        save(tmp_path, {1: {}})


@pytest.mark.first(2)
@pytest.mark.parametrize("text", ["", "{{{", "[1]", '{"val/accuracy": "x"}', '{"val/accuracy": null}', "{}"])
def test_damaged_metrics_of_a_checkpoint_end_nothing(tmp_path, caplog, text):
    """Without them it is no longer the best; a word is said where they cannot be read."""
    save(tmp_path, {4: {"val/accuracy": 0.5}})
    (tmp_path / "checkpoints" / "4" / "metrics" / "metrics").write_text(text)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, {step: {"val/accuracy": step / 100} for step in (5, 6, 7)})
    assert names(tmp_path) == [6, 7]
    assert ("no longer considered for the best" in caplog.text) == (text in ("", "{{{", "[1]"))
    assert load_params(tmp_path)[2].name == "7"
