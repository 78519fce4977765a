"""One life of a run: it is started, something befalls it, and what it leaves is compared with the undisturbed run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
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
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import checkpoint, hosts, interrupts, metrics

ROOT = pathlib.Path(__file__).parents[2]
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
LIMIT = 60
"""Seconds from a fault to the end of the last process; more is a hang."""
PATIENCE = 300
"""Seconds that a life may last at all; a busy machine takes a part of them."""
HOSTS = 4
"""Processes of a run on several hosts."""
WORLDS = {"one": "one process", "disk": "one process on a small disk", "hosts": f"{HOSTS} processes"}
"""Where a kind of fault happens: its runs have a workdir of their own there."""
NOISE = re.compile("Traceback|Exception ignored|never (awaited|retrieved)|Warning|Event loop")
RESUMED = re.compile(r"; (?:resumed at step (\d+)|starts from scratch)")
GONE, STOPPED = -signal.SIGKILL, (hosts.RESUME, *(-number for number in interrupts.ASKS))
"""Exit statuses; a signal ends a process that has just begun, before it can say anything."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Attributes:
    do: what befalls the run: given the trial; it may return what is to be kept of it.
    world: one of :data:`WORLDS`.
    statuses: exit statuses that are as they should be, besides 0.
    says: a pattern of what the terminal must show where the run came as far as training.
    when: moments that it may happen at, see :meth:`Trial.wait`.
    limit: seconds from it to the end; more is a hang.
    env: of the process.
    """

    do: Callable[[Trial], str | None]
    world: str = "one"
    statuses: tuple[int, ...] = (GONE,)
    says: str = ""
    when: tuple[str, ...] = ("start", *7 * ["training"])
    limit: float = LIMIT
    env: Callable[[pathlib.Path, random.Random], dict[str, str]] = lambda *_: {}


class Trial:
    """A process (or several) in ``workdir``.

    Args:
      workdir: of the run.
      chance: of what happens when.
      count: number of hosts.
      env: variables of the environment.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        chance: random.Random,
        count: int = 1,
        env: Mapping[str, str] = types.MappingProxyType({}),
    ) -> None:
        self.workdir, self.chance, self.hosts = workdir, chance, count
        workdir.parent.mkdir(parents=True, exist_ok=True)
        config = workdir.with_suffix(".py")
        text = json.dumps(json.dumps(RAW))
        config.write_text(f"import json\ndef get_config(arg=''):\n    return json.loads({text})\n")
        vit_jax = [sys.executable, "-m", "vit_jax"]
        launch = ["launch", "local", "--processes", str(count), "--"] if count > 1 else []
        command = [*vit_jax, *launch, "train", "--config", str(config), "--workdir", str(workdir)]
        env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "", **env}
        self._said = workdir.with_suffix(".txt")
        with self._said.open("wb") as said:  # through a pipe: the limit on files is not for this one
            self._reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said)
        with self._reader.stdin as pipe:  # type: ignore[union-attr]
            self.run = subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT)
        self.begun = self.befell = time.monotonic()

    def wait(self, moment: str) -> bool:
        """Until a random moment ``"start"``, in ``"training"``, in a ``"save"``, in an ``"evaluation"``, or once there
        are ``"two"`` checkpoints; False where the run ends before.
        """
        if moment == "start":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run.wait(self.chance.uniform(0.2, 6 * self.hosts))
            return self.run.poll() is None
        target, delay = lines(self.workdir) + self.chance.randint(1, 40), self.chance.random() * 0.05
        seen = {
            "training": lambda: lines(self.workdir) >= target,
            "two": lambda: lines(self.workdir) >= target and len(steps(self.workdir)) > 1,
            "save": lambda: lines(self.workdir) >= target and saving(self.workdir),
            "evaluation": lambda: lines(self.workdir) >= target and evaluating(self.workdir),
        }[moment]
        while self.run.poll() is None and not seen():
            if time.monotonic() - self.begun > PATIENCE:
                return False
            time.sleep(0.001)
        time.sleep(delay if moment in ("training", "two") else delay / 5)
        return self.run.poll() is None

    def befall(self, kind: Kind) -> tuple[float, str | None]:
        """Does it and waits for the end: seconds between the two, what was done in particular."""
        self.befell = time.monotonic()
        about = kind.do(self)
        return self.end(), about

    def end(self) -> float:
        """Waits for the end of all processes; seconds since the fault. Those that hang are ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run.wait(PATIENCE)
        passed = time.monotonic() - self.befell
        self.left = left(self.workdir) if self.run.poll() is not None else {self.run.pid, *left(self.workdir)}
        for process in self.left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.run.wait(PATIENCE)
        self._reader.wait(PATIENCE)
        return passed

    def abandon(self) -> None:
        """Leaves no process behind, whatever happened."""
        if self.run.poll() is None:
            self.run.kill()

    def said(self) -> str:
        """What the processes printed; only after the end."""
        return self._said.read_text(errors="replace")

    def wrong(self, kind: Kind | None, whole: tuple[Any, Any], least: int) -> list[str]:
        """What is not as it should be after the end.

        Args:
          kind: of what happened; None where nothing did.
          whole: rows and checksums of the undisturbed run.
          least: step of the last complete checkpoint before this life.
        """
        said, status, there, found = self.said(), self.run.returncode, rows(self.workdir), []
        if NOISE.search(said):
            found.append("litters the terminal")
        if status not in (0, *(kind.statuses if kind else ())):
            found.append(f"status {status}")
        if there != whole[0][: len(there)]:
            found.append("other rows")
        resumed = RESUMED.search(said)
        if resumed and int(resumed[1] or 0) < least:
            found.append(f"went on from {resumed[1] or 0} and not from {least}")
        if kind and kind.says and status and resumed and not re.search(kind.says, said):
            found.append(f"does not say {kind.says!r}")
        stopped = re.search(r"stopped at step (\d+) of", said)
        if stopped and (int(stopped[1]) not in steps(self.workdir) or status != hosts.RESUME):
            found.append(f"promises a checkpoint of step {stopped[1]}, or that to go on makes sense")
        if self.left:
            found.append(f"left {len(self.left)} processes")
        if status == 0 and (there != whole[0] or sums(self.workdir) != whole[1]):
            found.append("ended as another run")
        return found


def kill(trial: Trial) -> None:
    trial.run.kill()


def stop(trial: Trial) -> str:
    number = trial.chance.choice([signal.SIGTERM, signal.SIGTERM, *interrupts.ASKS])
    trial.run.send_signal(number)
    return number.name


def stop_twice(trial: Trial) -> str:
    pause, number = trial.chance.random() * 0.2, trial.chance.choice([signal.SIGTERM, signal.SIGINT])
    about = stop(trial)
    time.sleep(pause)
    trial.run.send_signal(number)
    return f"{about}, {number.name} after {pause:.2f} s"


def flip(trial: Trial) -> str:
    """Kills the run, and changes a random byte of a random file of its newest checkpoint."""
    trial.run.kill()
    trial.run.wait()
    return flipped(trial.workdir, trial.chance)


def flipped(workdir: pathlib.Path, chance: random.Random) -> str:
    """Changes a byte of the newest checkpoint of ``workdir``; says which."""
    folder = workdir / checkpoint.FOLDER / str(steps(workdir)[0])
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= chance.randrange(1, 256)
    path.write_bytes(data)
    return f"{path.relative_to(folder.parent)}:{place}"


def fill(trial: Trial) -> None:
    """Leaves no room on the disk until the run has ended."""
    filler = trial.workdir.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", 0) as f:
        while True:
            f.write(bytes(2**12))
    trial.end()
    filler.unlink(missing_ok=True)


def limit(trial: Trial) -> str:
    size = trial.chance.choice([2**8, 2**12, 2**14])
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(trial.run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return f"{size} bytes"


def peer(number: int, trial: Trial) -> str | None:
    """Sends a signal to one of the hosts."""
    there = sorted(children(trial.run.pid))
    if not there:
        return None
    victim = trial.chance.randrange(len(there))
    os.kill(there[victim], number)
    return f"host {victim + 1} of {len(there)}"


def stop_hosts(trial: Trial) -> str:
    """SIGTERM to one of the hosts, or to all with pauses, as schedulers send it."""
    there = children(trial.run.pid)
    if trial.chance.random() < 0.3:
        return peer(signal.SIGTERM, trial) or ""
    pause = trial.chance.random() * 0.6
    for host in trial.chance.sample(there, len(there)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(host, signal.SIGTERM)
        time.sleep(pause / len(there))
    return f"all within {pause:.2f} s"


def nothing(trial: Trial) -> str:
    """The disk fails from the beginning, again and again."""
    return "every few seconds"


def flaky(workdir: pathlib.Path, chance: random.Random) -> dict[str, str]:
    """A library below the process lets reads and writes in ``workdir`` fail for a while, again and again."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    library = workdir.parent / "flaky.so"
    if not library.exists():
        source = pathlib.Path(__file__).with_name("flaky.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    number, every = chance.choice([errno.EIO, errno.ESTALE, errno.ETIMEDOUT]), chance.uniform(3, 8)
    return {
        "LD_PRELOAD": str(library),
        "FLAKY": f"{workdir}:{number}:{every:.2f}:{chance.uniform(0.1, 0.15) * every:.2f}",
    }


SAYS = r"stopped at step \d+ of|stopped before or after training|interrupted"
FULL = "the disk is full; free some space and run the same command again"
KINDS = {
    "kill -9": Kind(kill),
    "kill -9 in a save": Kind(kill, when=("save",)),
    "SIGTERM or another": Kind(stop, statuses=(*STOPPED, 1), says=SAYS),
    "a second signal": Kind(stop_twice, statuses=(*STOPPED, 1), says=SAYS),
    "flipped byte": Kind(flip, when=("two",)),
    "full disk": Kind(fill, world="disk", statuses=(1,), says=FULL),
    "limit on files": Kind(limit, statuses=(1,), says=FULL),
    "failing disk": Kind(nothing, statuses=(1,), when=("start",), limit=PATIENCE, env=flaky),
    "SIGTERM to hosts": Kind(
        stop_hosts, world="hosts", statuses=(hosts.RESUME,), says=SAYS, when=("training", "save", "evaluation")
    ),
    "dead host": Kind(
        functools.partial(peer, signal.SIGKILL), world="hosts", statuses=(hosts.RESUME,), says=r"host \d",
        when=("training", "save", "evaluation"),
    ),
    "frozen host": Kind(
        functools.partial(peer, signal.SIGSTOP), world="hosts", statuses=(hosts.RESUME,), says=r"host \d",
        when=("training",),
    ),
}  # fmt: skip


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of the log without what is measured."""
    measured = ("speed", "goodput", "time", "host")
    return [{k: v for k, v in row.items() if not k.startswith(measured)} for row in metrics.read(workdir)]


def lines(workdir: pathlib.Path) -> int:
    """Number of rows of the log."""
    path = workdir / metrics.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def steps(workdir: pathlib.Path) -> list[int]:
    """Of the complete checkpoints, newest first."""
    return [int(folder.name) for folder in checkpoint.steps(workdir / checkpoint.FOLDER)]


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    folder = workdir / checkpoint.FOLDER
    return folder.is_dir() and any(not p.name.isdigit() for p in folder.iterdir() if "damaged" not in p.name)


def evaluating(workdir: pathlib.Path) -> bool:
    """Whether the last row is of a step that an evaluation follows."""
    there = (workdir / metrics.FILE).read_bytes().splitlines()[-1:]
    last = json.loads(there[0]) if there and there[0].endswith(b"}") else {"step": 1}
    return last["step"] % RAW["eval_every"] == 0 and "train/loss" in last


def sums(workdir: pathlib.Path) -> Any:
    """Checksums of all arrays of the last checkpoint, which is read."""
    folder = checkpoint.find(workdir)[0]
    kept = checkpoint.read_item(folder, "meta")["checksums"]
    return {name: checkpoint.checksums(checkpoint.read_item(folder, name)) for name in kept}


def children(process: int) -> list[int]:
    """Processes that ``process`` started."""
    with contextlib.suppress(OSError):
        return [int(n) for n in pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def left(workdir: pathlib.Path) -> set[int]:
    """Processes whose command names ``workdir``, after a moment in which they may end."""
    found: set[int] = set()
    for _ in range(20):
        found = set()
        for folder in pathlib.Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(workdir).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                        found.add(int(folder.name))
        if not found:
            break
        time.sleep(0.1)
    return found


def undisturbed(folder: pathlib.Path, count: int) -> tuple[Any, Any]:
    """Rows and checksums of the run that nothing befalls."""
    workdir = folder / f"whole{count}"
    if not (workdir / "results.json").exists():
        shutil.rmtree(workdir, ignore_errors=True)
        trial = Trial(workdir, random.Random(0), count)
        trial.end()
        assert trial.run.returncode == 0, trial.said()
    return rows(workdir), sums(workdir)
