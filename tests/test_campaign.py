"""``experiments/faults``: whatever befalls a run, the same command makes the undisturbed run of it."""

import importlib.util
import json
import pathlib
import random
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "faults"


@pytest.fixture(scope="module")
def faults():
    """The module ``experiments/faults/run.py``."""
    spec = importlib.util.spec_from_file_location("faults_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
        yield module


def line(kind, **about):
    found = {"kind": kind, "world": "one", "about": None, "seconds": 1.0, "steps": [20, 10], "resumed": 10}
    return {**found, "end": False, "wrong": [], **about}


def test_what_the_next_life_owes(faults):
    """The last complete checkpoint, but for one that was changed and not read since."""
    flip = line("flipped byte", about="20/params/d/x:7")
    assert faults.least_step([], []) == 0
    assert faults.least_step([line("kill -9")], [20, 10]) == 20
    assert faults.least_step([line("kill -9"), flip], [20, 10]) == 10
    assert faults.least_step([flip, line("kill -9", resumed=None)], [20, 10]) == 10
    assert faults.least_step([flip, line("kill -9", resumed=10)], [20, 10]) == 20  # written anew, or read


def test_the_table_counts_what_went_on_and_what_went_wrong(faults):
    ended = line(None, resumed=20, end=True)
    text = faults.table([line("kill -9"), line("kill -9", resumed=20, wrong=["other rows"], end=True), ended])
    assert "| kill -9 | 2 | 1 of 1 | 1.0 s | 1 |" in text and "1 of 2 runs ended" in text


def test_a_byte_is_changed(faults, tmp_path):
    (tmp_path / "checkpoints" / "10" / "params").mkdir(parents=True)
    file = tmp_path / "checkpoints" / "10" / "params" / "x"
    file.write_bytes(b"abc")
    assert faults.trial.flipped(tmp_path, random.Random(0)).startswith("10/params/x:")
    assert sum(a != b for a, b in zip(file.read_bytes(), b"abc", strict=True)) == 1


@pytest.mark.slow
def test_whatever_befalls_a_run_it_is_the_same_run(faults, tmp_path):
    """And a campaign that is begun again goes on."""
    wanted = {"kill -9": 2, "kill -9 in a save": 2, "SIGTERM or another": 2, "flipped byte": 2, "limit on files": 1}
    with faults.small_disk(tmp_path / "disk") as disk:
        wanted |= {"full disk": 1} if disk else {}
        for part in ({"kill -9": 1}, wanted):
            campaign = faults.Campaign(tmp_path, tmp_path / "results.jsonl", 0)
            campaign.go(part, time.monotonic() + 600)
    assert campaign.count() == wanted and [k["wrong"] for k in campaign.lines if k["wrong"]] == []
    assert any(k["end"] for k in campaign.lines)
    assert [json.loads(k) for k in campaign.results.read_text().splitlines()] == campaign.lines
