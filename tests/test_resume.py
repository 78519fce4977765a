"""A killed run goes on bit for bit, and a run may change its mesh on the way."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vit_jax import metrics
from vit_jax.train import loop

ROOT = pathlib.Path(__file__).parent.parent
RAW = {
    "model": {
        "name": "vit",
        "patch": 4,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 128,
        "pool": "gap",
        "dropout": 0.1,
    },
    "data": {"path": "digits", "canvas": 8},
    "augment": {"size": 8, "train": ["affine", "mixup"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "batch_size": 64,
    "duration": 16,
    "log_every": 1,
    "eval_every": 8,
    "checkpoint_every": 4,
    "ema": 0.9,
}


def losses(folder):
    return np.array([r["train/loss"] for r in metrics.read(folder) if "train/loss" in r])


class Stop(Exception):
    pass


def stop_at_6(moment):
    if moment.step == 6:
        raise Stop


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_curve(tmp_path, monkeypatch):
    """One device until step 4, then 2x2x2: equal to 1e-5."""
    raw = {**RAW, "model": {**RAW["model"], "depth": 1}, "duration": 8, "plots": False}
    one = {**raw, "mesh": {"replica": 1, "fsdp": 1, "tensor": 1}}
    devices = jax.devices()
    with monkeypatch.context() as m:
        m.setattr(jax, "devices", lambda *a: devices[:1])
        m.setattr(jax, "device_count", lambda *a: 1)
        loop.run(one, tmp_path / "whole")
        with pytest.raises(Stop):
            loop.run(one, tmp_path / "cut", hooks=[stop_at_6])
    result = loop.run({**raw, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}, tmp_path / "cut")
    assert result.setup.mesh.size == 8
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-5)


@pytest.mark.slow
def test_kill_at_ten_random_moments(tmp_path):
    """kill -9, the same command again, ten times: every row of the log as if nothing had happened."""
    config = tmp_path / "config.py"
    raw = {**RAW, "duration": 400, "checkpoint_every": 10, "eval_every": 100}
    config.write_text(f"import json\ndef get_config(arg=''):\n    return json.loads({json.dumps(json.dumps(raw))})\n")
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}

    def command(name):
        return [sys.executable, "-m", "vit_jax", "train", "--config", str(config), "--workdir", str(tmp_path / name)]

    subprocess.run(command("whole"), check=True, env=env, stdout=subprocess.DEVNULL)
    chance, kills, reached = random.Random(0), 0, []
    while kills < 10:
        run = subprocess.Popen(command("cut"), env=env, stdout=subprocess.DEVNULL)
        rows = len(metrics.read(tmp_path / "cut")) if (tmp_path / "cut").exists() else 0
        target = rows + chance.randint(5, 30)  # rows of the log, then some milliseconds into whatever happens next
        while run.poll() is None and len(_lines(tmp_path / "cut")) < target:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.05)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            kills += 1
            reached.append(len(_lines(tmp_path / "cut")))
        run.wait()
        assert run.returncode in (0, -signal.SIGKILL)
        assert run.returncode != 0 or kills == 10, f"the run ended after {kills} kills: lengthen it"
    subprocess.run(command("cut"), check=True, env=env, stdout=subprocess.DEVNULL)
    whole, cut = (
        [{k: v for k, v in r.items() if "speed" not in k} for r in metrics.read(tmp_path / n)] for n in ("whole", "cut")
    )
    print(f"killed after rows {reached}")
    assert cut == whole


def _lines(folder):
    path = folder / metrics.FILE
    return path.read_bytes().splitlines() if path.exists() else []
