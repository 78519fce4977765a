"""Runs that are kept on an object store: killed, interrupted by errors of the store, damaged there, read from there."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import vit_jax as vj
from tests import stores
from tests.data.helpers import encode
from vit_jax import metrics
from vit_jax.data.sources import open_source, write_tar
from vit_jax.io import mirror, retry, store
from vit_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
RAW = {
    "model": {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "dropout": 0.1},
    "augment": {"size": 8, "train": ["flip"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "batch_size": 16,
    "duration": 20,
    "log_every": 1,
    "eval_every": 10,
    "checkpoint_every": 2,
    "ema": 0.9,
    "plots": False,
    "loggers": ["tensorboard"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_mirrors", {})
    monkeypatch.setattr(retry, "_counts", type(retry._counts)())


@pytest.fixture
def shards(tmp_path, rng):
    """60 images of two classes in tar shards."""
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            (tmp_path / "images" / name / f"{i:02d}.png").write_bytes(encode(pixels, "PNG"))
    write_tar(open_source(f"folder:{tmp_path}/images", holdout=0), f"{tmp_path}/t-{{:03d}}.tar", shard_size=40)
    return sorted(tmp_path.glob("*.tar"))


def raw(data):
    return {**RAW, "data": {"path": data, "canvas": 8, "holdout": 12, "workers": 2}}


def curve(text):
    """The rows of a log but for what time tells."""
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k == "step" or k.startswith(("train/", "val/"))} for row in rows]


@contextlib.contextmanager
def process(config, workdir, variables):
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "vit_jax", "train", "--config", str(config), "--workdir", workdir]
    cpu = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env={**os.environ, **variables, **cpu}, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def marks(address):
    """Steps of the checkpoints that are complete at an address."""
    found = (re.fullmatch(rf"(\d+)/{mirror.MARK}", path) for path in store.tree(address))
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.slow
def test_a_run_on_a_store_that_fails_and_processes_that_are_killed(tmp_path, shards, monkeypatch):
    """Data and workdir on S3, where every seventh request fails, and three processes are killed: the local curve."""
    plain = tmp_path / "config.json"
    with stores.s3("bucket") as (proxy, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for shard in shards:
            store.upload(shard, f"s3://bucket/data/{shard.name}")
        plain.write_text(json.dumps(raw(f"tar:{tmp_path}/t-{{000..001}}.tar")))
        with process(plain, str(tmp_path / "local"), variables) as child:
            assert child.wait() == 0, child.stdout.read()
        plain.write_text(json.dumps(raw("tar:s3://bucket/data/t-{000..001}.tar")))
        address, killed = "s3://bucket/runs/one", []
        proxy.fail = 7
        for least in (1, 5, 9):
            with process(plain, address, variables) as child:
                while (not (there := marks(f"{address}/checkpoints")) or there[-1] < least) and child.poll() is None:
                    time.sleep(0.02)
                os.kill(child.pid, signal.SIGKILL)
                killed.append(there[-1])
        assert killed[0] < 20
        with process(plain, address, variables) as child:
            said = child.stdout.read()
        assert child.returncode == 0, said
        assert f"resumed at step {marks_said(said)}" in said and marks_said(said) >= killed[-1]
        assert "tried again after errors that passed: " in said and "ended unheard; going on" in said
        assert f"results.json is in {address}" in said
        there = store.read(f"{address}/metrics.jsonl").decode()
        assert curve(there) == curve((tmp_path / "local" / metrics.FILE).read_text())
        assert marks(f"{address}/checkpoints")[-1] == 20 and not store.exists(f"{address}/lock")
        proxy.fail = 0
        here = vj.evaluate(address)
        assert here.checkpoint == f"{address}/checkpoints/20"
        assert here.metrics == vj.evaluate(str(tmp_path / "local")).metrics
        assert vj.load(address).source == f"{address}/checkpoints/20"
        assert store.exists(f"{address}/evaluation/results.json")
        flip(f"{address}/checkpoints/20", "ema")
        again = vj.evaluate(address)
        assert again.checkpoint != f"{address}/checkpoints/20"


def marks_said(said):
    return int(said.partition("resumed at step ")[2].split()[0].rstrip(";,"))


def flip(checkpoint, item):
    """Changes a byte of the largest file of an item of a checkpoint at an address."""
    files = store.tree(f"{checkpoint}/{item}")
    largest = max((path for path in files if "d/" in path), key=lambda path: files[path].size)
    data = bytearray(store.read(f"{checkpoint}/{item}/{largest}"))
    data[len(data) // 2] ^= 1
    store.write(f"{checkpoint}/{item}/{largest}", bytes(data))


@pytest.mark.slow
def test_a_byte_that_is_flipped_on_the_store_is_noticed(shards, tmp_path, caplog):
    """The checkpoint is moved aside there, and the one before it taken; the curve is the same."""
    config, address = raw(f"tar:{tmp_path}/t-*.tar"), "memory://flipped/run"
    loop.run(config, address)
    first = store.read(f"{address}/metrics.jsonl").decode()
    flip(f"{address}/checkpoints/20", "params")
    loop.run(config, address)
    assert f"The damaged checkpoint now lies in {address}/checkpoints/damaged-20" in caplog.text
    assert curve(store.read(f"{address}/metrics.jsonl").decode()) == curve(first)
    assert any("damaged-20/params" in path for path in store.tree(address))
    assert marks(f"{address}/checkpoints")[-1] == 20


@pytest.mark.slow
def test_a_store_that_is_gone_is_no_damage(shards, tmp_path, monkeypatch):
    """What cannot be fetched ends the run with a sentence, and nothing is moved aside."""
    config, address = raw(f"tar:{tmp_path}/t-*.tar"), "memory://gone/run"
    loop.run(config, address)
    before = store.tree(address)
    real = store.download

    def download(place, path):
        if "/d/" in place:
            raise OSError(errno.EIO, "Service Unavailable")
        real(place, path)

    with monkeypatch.context() as m:
        m.setattr(store, "download", download)
        with pytest.raises(vj.UserError, match=r"cannot be fetched \(Service Unavailable\); it may be sound\."):
            loop.run(config, address)
    assert {path for path in before if "checkpoints" in path} <= set(store.tree(address))


@pytest.mark.slow
def test_hosts_that_share_no_disk_keep_their_run_on_a_store(tmp_path):
    """Two hosts, each with a part of the state: the first writes all of it, both go on from it, one host as well."""
    address, plain, folder = (
        f"file://{tmp_path}/store/run",
        tmp_path / "config.json",
        tmp_path / "store/run/checkpoints",
    )
    mesh = {"replica": 1, "fsdp": 2, "tensor": 1}
    plain.write_text(json.dumps(raw("digits") | {"mesh": mesh, "duration": 12, "checkpoint_every": 3, "eval_every": 6}))
    words = ["train", "--config", str(plain), "--workdir", address]
    hosts = [sys.executable, "-m", "vit_jax", "launch", "local", "--processes", "2", "--", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    curves = []
    for cut in (0, 9):
        for step in marks(f"{address}/checkpoints") if cut else ():
            if step > cut:
                shutil.rmtree(folder / str(step))
        done = subprocess.run(hosts, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        assert ("resumed at step 9" in done.stdout) == bool(cut), done.stdout
        curves.append(curve(store.read(f"{address}/metrics.jsonl").decode()))
    assert curves[0] == curves[1] and len(curves[0]) == 14
    assert vj.load(address).source == f"{address}/checkpoints/12"
