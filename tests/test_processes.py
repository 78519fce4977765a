"""One run of several real processes: its curve is that of one, and what goes wrong between them is a sentence."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import processes
from vit_jax import cli

EVERY = [f"--config.{name}_every={n}" for name, n in {"log": 1, "eval": 4, "checkpoint": 4}.items()]
SHORT = [*processes.TINY, *EVERY, "--config.duration=4"]


def curve(workdir):
    """What was trained and scored, by step and name."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {(row["step"], k): v for row in rows for k, v in row.items() if k.startswith(("train/", "val/"))}


def run(words, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax", *words], env=processes.clean() | environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.thorough
def test_two_processes_train_as_one_does(tmp_path):
    """The one run of several processes in the plain suite: through the launcher, to its end."""
    said = run(["launch", "local", "--", "train", f"--workdir={tmp_path}/two", *SHORT])
    assert said.count("step 4/4") == 2 and said.count("results.json is in") == 1
    assert "host 2: " not in said.replace("host 2: [Gloo]", "")
    assert cli.main(["train", f"--workdir={tmp_path}/one", *SHORT]) == 0
    two, one = curve(tmp_path / "two"), curve(tmp_path / "one")
    assert two.keys() == one.keys() and two[4, "val/examples"] == 360
    assert two == pytest.approx(one, abs=1e-5)


def endless(workdir):
    return ["train", f"--workdir={workdir}", *processes.TINY, *EVERY, "--config.duration=100000"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_asked_to_stop_ends_with_the_status_that_is_resumed(tmp_path, number):
    command = [sys.executable, "-m", "vit_jax", "launch", "local", "--processes", "4", "--", *endless(tmp_path)]
    host = processes.Host(command, processes.clean())
    try:
        host.until("step 8/")
        asked = host.kill(number)
        ended = host.ended(60)
    finally:
        host.process.kill()
    print(f"{number.name}: ended after {ended.at - asked:.1f} s")
    assert ended.status == 75, ended.output
    assert ended.output.count("; the same command resumes there.") == 1
    assert len(os.listdir(tmp_path / "checkpoints")) >= 2 and "Traceback" not in ended.output


@pytest.mark.slow
def test_a_killed_host_ends_the_launcher(tmp_path):
    command = [sys.executable, "-m", "vit_jax", "launch", "local", "--processes", "2", "--", *endless(tmp_path)]
    host = processes.Host(command, processes.clean())
    try:
        host.until("step 8/")
        children = subprocess.run(["pgrep", "-P", str(host.process.pid)], capture_output=True, text=True, check=True)
        victim = int(children.stdout.split()[1])
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        ended = host.ended(60)
    finally:
        host.process.kill()
    print(f"SIGKILL under the launcher: ended after {ended.at - killed:.1f} s")
    assert ended.status == 75, ended.output
    assert "vit_jax launch: host 2 of 2 was ended by SIGKILL." in ended.output
    assert "vit_jax train: host 2 of 2 has ended without a word" in ended.output


@pytest.mark.slow
def test_a_workdir_that_another_run_has_is_refused_on_all_hosts(tmp_path):
    with processes.started(1, endless(tmp_path)) as (other,):
        other.until("step 4/")
        with processes.started(3, [*endless(tmp_path), "--config.batch_size=48"]) as hosts:
            ended = processes.ended(hosts, 60)
    assert [one.status for one in ended] == [1] * 3
    (line,) = [line for one in ended for line in one.output.splitlines() if line.startswith("vit_jax train: ")]
    assert "is in use by process" in line


@pytest.mark.slow
def test_a_workdir_that_a_host_does_not_see_is_refused(tmp_path):
    code = f"""
import os, sys
from vit_jax import cli
place = {str(tmp_path)!r} + ("/elsewhere" if os.environ["JAX_PROCESS_ID"] == "1" else "/run")
sys.exit(cli.main(["train", "--workdir", place, *{SHORT!r}, "--config.batch_size=48"]))
"""
    with processes.started(3, code=code) as hosts:
        ended = processes.ended(hosts, 90)
    assert [one.status for one in ended] == [1] * 3
    (line,) = [line for one in ended for line in one.output.splitlines() if line.startswith("vit_jax train: ")]
    assert line.endswith(
        "/run' is not seen by host 2 of 3; give all hosts the same --workdir, on a disk that they share."
    )


def _any(hosts):
    """Those that ended, once one has."""
    end = time.monotonic() + 60
    while not any(host.at for host in hosts) and time.monotonic() < end:
        time.sleep(0.1)
    return [host.ended(1) for host in hosts if host.at]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "status", "sentence"),
    [
        ([{}, {"JAX_PROCESS_ID": "5"}], 2, "JAX_PROCESS_ID=5 is no number of 2 hosts"),
        (
            [{"JAX_NUM_PROCESSES": "3"}, {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"}],
            1,
            "cannot wait for the others",
        ),
        ([{"JAX_COORDINATOR_ADDRESS": "127.0.0.1"}] * 2, 2, "is no HOST:PORT of the first host"),
        ([{"JAX_NUM_PROCESSES": ""}] * 2, 2, "without JAX_NUM_PROCESSES"),
    ],
)
def test_a_wrong_description_is_a_sentence(tmp_path, each, status, sentence):
    with processes.started(2, ["train", f"--workdir={tmp_path}", *SHORT], each=each) as hosts:
        ended = hosts[1].ended(60) if status == 2 else min(_any(hosts), key=lambda one: one.at)
    assert ended.status == status and "Traceback" not in ended.output
    assert sentence in ended.output.splitlines()[-1]


@pytest.mark.slow
def test_other_commands_write_and_print_on_the_first_host_alone(tmp_path):
    run(["train", f"--workdir={tmp_path}/run", *SHORT], JAX_PLATFORMS="cpu")
    words = [
        ["evaluate", "--workdir", f"{tmp_path}/run", "--json", f"{tmp_path}/found.json"],
        ["predict", "--workdir", f"{tmp_path}/run", "fake:3x8x3", "--top", "1"],
        ["embed", "--workdir", f"{tmp_path}/run", "fake:3x8x3", "--output", f"{tmp_path}/e.npy"],
        ["convert", f"{tmp_path}/run", f"{tmp_path}/converted", "--to", "vit_jax"],
        ["data", "check", "fake:3x8x3"],
        ["bench", "input", "--data", "fake:8x8x2", "--batch", "4", "--canvas", "8", "--rounds", "2"],
    ]
    for command in words:
        said = run(["launch", "local", "--", *command]).splitlines()
        lines = [line for line in said if "[Gloo]" not in line]
        assert lines and len(lines) == len(set(lines)) and not any(line.startswith("host 2") for line in lines), said
    assert (tmp_path / "found.json").is_file() and (tmp_path / "e.npy").is_file()
    assert (tmp_path / "converted" / "checkpoints").is_dir()
