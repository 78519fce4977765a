"""A run that is killed, stopped, damaged or out of disk at random moments, and started again, is the undisturbed run.

python experiments/faults/run.py --folder runs/faults --minutes 60

Faults befall one run after the other until it ends; the next run then starts. Every fault is a line of the results, and
so is every end, at which the log and all arrays of the last checkpoint are compared. The same command goes on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

import vit_jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import trial
from trial import HOSTS, KINDS, WORLDS, Trial

HERE = pathlib.Path(__file__).parent
TRIALS = {
    "kill -9": 60,
    "kill -9 in a save": 30,
    "SIGTERM or another": 20,
    "a second signal": 5,
    "flipped byte": 20,
    "full disk": 5,
    "limit on files": 3,
    "failing disk": 5,
    "SIGTERM to hosts": 6,
    "dead host": 10,
    "frozen host": 2,
}
"""How often each kind happens."""
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/faults", help="for the runs; it is kept, to go on in")
    parser.add_argument("--results", default=str(HERE / "results.jsonl"))
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    parser.add_argument("--only", action="append", choices=list(TRIALS), help="this kind; may be repeated")
    parser.add_argument("--trials", type=int, default=None, help="of each kind, instead of the campaign's numbers")
    parser.add_argument("--minutes", type=float, default=60, help="until no further fault is begun")
    args = parser.parse_args()
    wanted = {k: n if args.trials is None else args.trials for k, n in TRIALS.items() if k in (args.only or TRIALS)}
    campaign = Campaign(pathlib.Path(args.folder).absolute(), pathlib.Path(args.results), args.seed)
    with small_disk(campaign.folder / "disk") as there:
        if not there:
            wanted.pop("full disk", None)
            print("no disk can be mounted here: without full disks")
        campaign.go(wanted, time.monotonic() + 60 * args.minutes)
    print(table(campaign.lines))
    if any(line["wrong"] for line in campaign.lines):
        sys.exit("something went wrong, see the results")


class Campaign:
    """Trials and their results.

    Args:
      folder: where the runs lie, each world's in a folder of its own.
      results: a file with a line of JSON for every fault, and for every end of a run.
      seed: of what happens when.
    """

    def __init__(self, folder: pathlib.Path, results: pathlib.Path, seed: int) -> None:
        self.folder, self.results, self.seed = folder, results, seed
        folder.mkdir(parents=True, exist_ok=True)
        text = results.read_text() if results.exists() else ""
        self.lines: list[Line] = [json.loads(line) for line in text.splitlines()]
        if self.lines and self.lines[0]["seed"] != seed:
            sys.exit(f"{results} has the seed {self.lines[0]['seed']}; go on with that, or name other --results")

    def go(self, wanted: dict[str, int], until: float) -> None:
        """Until there were as many faults of each kind as ``wanted``, and every run that one befell has ended."""
        while due := {k: n for k in wanted if (n := wanted[k] - self.count()[k]) > 0}:
            if time.monotonic() > until:
                break
            chance = random.Random(f"{self.seed} {len(self.lines)}")
            self.live(*chance.choices(list(due), list(due.values())), chance)
        for world in WORLDS:
            if self.chain(world):
                self.live(None, random.Random(0), world)

    def count(self) -> collections.Counter[str]:
        """Faults of each kind that happened so far."""
        return collections.Counter(line["kind"] for line in self.lines if line["kind"])

    def chain(self, world: str) -> list[Line]:
        """What befell the run that is under way in ``world``."""
        there = [line for line in self.lines if line["world"] == world]
        ends = [i for i, line in enumerate(there) if line["end"]]
        return there[ends[-1] + 1 if ends else 0 :]

    def live(self, name: str | None, chance: random.Random, world: str = "") -> None:
        """One life of a run, with or without a fault, and its line in the results."""
        kind = KINDS[name] if name else None
        world = kind.world if kind else world
        hosts = HOSTS if world == "hosts" else 1
        whole = trial.undisturbed(self.folder / "hosts" if hosts > 1 else self.folder / "one", hosts)
        before, workdir = self.chain(world), self.folder / world / "run"
        if not before:
            shutil.rmtree(workdir, ignore_errors=True)
        least = least_step(before, trial.steps(workdir))
        moment = chance.choice(kind.when) if kind else ""
        life = Trial(workdir, chance, hosts, kind.env(workdir, chance) if kind else {})
        try:
            happens = kind is not None and life.wait(moment)
            seconds, about = life.befall(kind) if kind and happens else (life.end(), None)
        finally:
            life.abandon()
        wrong = life.wrong(kind if happens else None, whole, least)
        if kind and happens and seconds > kind.limit:
            wrong.append(f"hung for {seconds:.0f} s")
        resumed = trial.RESUMED.search(life.said())
        line = {
            "kind": name if happens else None, "world": world, "moment": moment if happens else "", "about": about,
            "status": life.run.returncode, "seconds": round(seconds, 2), "rows": trial.lines(workdir), "least": least,
            "resumed": int(resumed[1] or 0) if resumed else None, "steps": trial.steps(workdir),
            "end": life.run.returncode == 0 or bool(wrong), "wrong": wrong,
        }  # fmt: skip
        self.keep(line)
        print(" ".join(f"{k}={v}" for k, v in {"number": len(self.lines), **line}.items() if v not in (None, "")))
        if wrong:
            print(life.said())

    def keep(self, line: Line) -> None:
        """Appends to the results."""
        about = {"seed": self.seed, "vit_jax": vit_jax.__version__, "jax": jax.__version__, "of": platform.machine()}
        self.lines.append(line if self.lines else {**about, **line})
        with self.results.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")


def least_step(before: list[Line], there: list[int]) -> int:
    """That the next life is to go on from: the last complete checkpoint, but for one with a byte changed since it was
    last read.
    """
    read = max((i for i, line in enumerate(before) if line["resumed"] is not None and not flips(line)), default=-1)
    changed = {int(line["about"].split("/")[0]) for line in before[read + 1 :] if flips(line)}
    return max((step for step in there if step not in changed), default=0)


def flips(line: Line) -> bool:
    return line["kind"] == "flipped byte"


def table(lines: list[Line]) -> str:
    """Kinds of faults and what came of them, as Markdown."""
    found = ["| fault | times | resumed at the last save | longest until the end | wrong |", "|---|---|---|---|---|"]
    after: dict[int, Line] = {}  # fault -> the next life of the same run that came as far as resuming
    for world in WORLDS:
        there = [line for line in lines if line["world"] == world]
        for i, line in enumerate(there):
            later = (n for n in there[i + 1 :] if n["resumed"] is not None)
            after[id(line)] = {} if line["end"] else next(later, {})
    for kind in TRIALS:
        of = [line for line in lines if line["kind"] == kind]
        if of:
            exact = sum(after[id(line)].get("resumed") == max(line["steps"], default=0) for line in of)
            goes_on = sum(not line["end"] for line in of)
            wrong = sum(bool(line["wrong"]) for line in of)
            slowest = max(line["seconds"] for line in of)
            found.append(f"| {kind} | {len(of)} | {exact} of {goes_on} | {slowest:.1f} s | {wrong} |")
    ends = [line for line in lines if line["end"]]
    equal = sum(not line["wrong"] for line in ends)
    return "\n".join([*found, "", f"{equal} of {len(ends)} runs ended bit for bit as the undisturbed one."])


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str = "6m") -> Iterator[bool]:
    """``folder`` becomes a disk of ``size``, where that is allowed; whether it was."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.path.ismount(folder) or not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    main()
