"""A run that is killed, stopped or out of disk at random moments, and started again, is the run that nothing befell.

``python tests/test_campaign.py 200`` does it that often and prints what happened; the test does a few.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vit_jax import checkpoint, metrics

ROOT = pathlib.Path(__file__).parents[1]
RAW = {
    "model": {
        "name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "pool": "gap", "dropout": 0.1,
    },
    "data": {"path": "fake:512x8x10", "canvas": 8, "holdout": 64},
    "augment": {"size": 8, "train": ["flip", "mixup"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "batch_size": 32,
    "duration": 160,
    "log_every": 1,
    "eval_every": 40,
    "checkpoint_every": 10,
    "ema": 0.9,
    "plots": False,
}  # fmt: skip
EVENTS = {"kill": 6, "stop": 6, "stop twice": 3, "full disk": 3, "limit on files": 3}
"""What befalls a run, and how often in proportion."""
PATIENCE = 120
"""Seconds until a process that should end counts as hanging; a busy machine takes a part of them."""


class Campaign:
    """Runs on a small disk of their own, and what nothing may change.

    Args:
      folder: to write to.
      seed: of what happens when.
      disk: whether ``folder / "disk"`` can be filled up without harm to others.
    """

    def __init__(self, folder: pathlib.Path, seed: int, *, disk: bool) -> None:
        self.folder, self.disk, self.chance = folder, folder / "disk", random.Random(seed)
        self.kinds = {k: n for k, n in EVENTS.items() if disk or k != "full disk"}
        self.config = folder / "config.py"
        text = json.dumps(json.dumps(RAW))
        self.config.write_text(f"import json\ndef get_config(arg=''):\n    return json.loads({text})\n")
        whole = folder / "whole"
        assert self.start(whole).wait() == 0, self.said()
        self.rows, self.sums = rows(whole), sums(whole)
        self.count: collections.Counter[str] = collections.Counter()
        self.workdir, self.chains, self.promised, self.least = self.disk / "run0", 0, None, 0

    def start(self, workdir: pathlib.Path) -> subprocess.Popen[bytes]:
        """The one command."""
        command = [sys.executable, "-m", "vit_jax", "train", "--config", str(self.config), "--workdir", str(workdir)]
        env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}
        with (self.folder / "said").open("wb") as said:  # through a pipe: the limit on files is not for this one
            self.reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said)
        with self.reader.stdin as pipe:
            return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """What the last process printed."""
        self.reader.wait(PATIENCE)
        return (self.folder / "said").read_text(errors="replace")

    def wait(self, run: subprocess.Popen[bytes]) -> bool:
        """Until the moment of the next event; False where the run ends before."""
        if self.chance.random() < 0.15:  # while it starts
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(self.chance.uniform(0.2, 6))
            return run.poll() is None
        target = lines(self.workdir) + self.chance.randint(1, 40)
        while run.poll() is None and lines(self.workdir) < target:
            time.sleep(0.002)
        time.sleep(self.chance.random() * 0.05)
        return run.poll() is None

    def befall(self, run: subprocess.Popen[bytes], kind: str) -> None:
        """Does it, and waits for the end."""
        filler = self.disk / "filler"
        if kind == "kill":
            run.kill()
        elif kind.startswith("stop"):
            run.send_signal(self.chance.choice([signal.SIGTERM, signal.SIGINT]))
            if kind == "stop twice":
                time.sleep(self.chance.random() * 0.2)
                run.send_signal(signal.SIGINT)
        elif kind == "full disk":
            with contextlib.suppress(OSError), filler.open("wb", 0) as f:
                while True:
                    f.write(bytes(2**12))
        else:
            size = self.chance.choice([2**8, 2**12, 2**14])
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        run.wait(PATIENCE)
        filler.unlink(missing_ok=True)

    def check_start(self) -> None:
        """What the process before promised is true: its checkpoint is there, and is gone on with."""
        said = self.said()
        found = re.search(r"resumed at step (\d+)", said)
        if "; starts from scratch" not in said and not found:
            return  # it did not come that far
        step = int(found[1]) if found else 0
        assert step >= self.least and (self.promised is None or step == self.promised), (
            self.promised,
            self.least,
            said,
        )
        assert "damaged" not in said and "cannot be read" not in said, said

    def check_end(self, kind: str | None, status: int) -> None:
        """A sentence and nothing worse, and every row so far is that of the whole run."""
        said, there = self.said(), rows(self.workdir)
        assert not re.search("Traceback|Exception ignored|never (awaited|retrieved)|Warning", said), said
        allowed = {"kill": (-signal.SIGKILL,), "stop": (1, -signal.SIGTERM), "stop twice": (1, -signal.SIGTERM)}
        assert status in (0, *allowed.get(kind or "", (1,))), (kind, status, said)
        assert there == self.rows[: len(there)], (kind, len(there))
        if kind == "stop" and status == 1:
            assert re.search(r"stopped at step \d+ of|interrupted", said), said
        if kind in ("full disk", "limit on files") and status == 1:
            assert "the disk is full; free some space and run the same command again" in said, said
        stopped = re.search(r"stopped at step (\d+) of", said)
        self.promised = int(stopped[1]) if stopped else None
        kept = re.search(r"the checkpoint of step (\d+) is intact", said)
        self.least = max(int(found[1]) for found in (stopped, kept) if found) if stopped or kept else 0

    def run(self, events: int, report: Callable[[str], Any] = str) -> list[str]:
        """Until ``events`` happened and the last run ended; what was not as it should be, with the event."""
        wrong, kind = [], ""
        while True:
            run = self.start(self.workdir)
            happens = sum(self.count.values()) < events and self.wait(run)
            if happens:
                kind = self.chance.choices(list(self.kinds), list(self.kinds.values()))[0]
                self.befall(run, kind)
                self.count[kind] += 1
            else:
                run.wait(PATIENCE)
            number = sum(self.count.values())
            report(f"{number} {kind if happens else ''}: {run.returncode}, {lines(self.workdir)} rows")
            try:
                self.check_start()
                self.check_end(kind if happens else None, run.returncode)
                assert run.returncode in (0, None) or happens, self.said()
                if run.returncode == 0:
                    assert rows(self.workdir) == self.rows and sums(self.workdir) == self.sums
            except AssertionError as e:
                wrong.append(f"{number} {kind}: {e}")
                report(wrong[-1])
            else:
                if run.returncode != 0:
                    continue
                self.chains += 1
            if number >= events:
                return wrong
            shutil.rmtree(self.workdir, ignore_errors=True)
            self.workdir, self.promised, self.least = self.disk / f"run{self.chains}", None, 0


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of the log without measured speeds."""
    return [{k: v for k, v in row.items() if "speed" not in k} for row in metrics.read(workdir)]


def lines(workdir: pathlib.Path) -> int:
    """Number of rows of the log."""
    path = workdir / metrics.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def sums(workdir: pathlib.Path) -> Any:
    """Checksums of all arrays of the last checkpoint."""
    return checkpoint.read_item(checkpoint.find(workdir)[0], "meta")["checksums"]


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str = "6m") -> Iterator[bool]:
    """``folder`` becomes a disk of ``size``, where that is allowed; whether it was."""
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_whatever_befalls_a_run_it_is_the_same_run(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        campaign = Campaign(tmp_path, 0, disk=disk)
        wrong = campaign.run(12)
    assert not wrong and sum(campaign.count.values()) == 12 and campaign.chains


if __name__ == "__main__":
    number, seed = (int(text) for text in (*sys.argv[1:], "0")[:2])
    begun = time.time()
    with tempfile.TemporaryDirectory() as place, small_disk(pathlib.Path(place) / "disk") as disk:
        campaign = Campaign(pathlib.Path(place), seed, disk=disk)
        wrong = campaign.run(number, print)
    print(
        f"{dict(campaign.count)}; {campaign.chains} runs ended as if nothing had happened; {time.time() - begun:.0f} s"
    )
    sys.exit(f"{len(wrong)} went wrong" if wrong else 0)
