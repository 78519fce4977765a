"""Hosts as processes of this machine: what they are given, how they end, and that none stays."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vit_jax import cli
from vit_jax.cli.launch import local

TRAIN = ["train", "--config", "digits", "--workdir", "a b"]


def test_a_dry_run_prints_what_would_be_started(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = ["--processes", "2", "--devices_per_process", "3", "--port", "7001", "--dry_run"]
    assert cli.main(["launch", "local", *options, "--", *TRAIN]) == 0
    shared = "JAX_COORDINATOR_ADDRESS=127.0.0.1:7001 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:7001 JAX_NUM_PROCESSES=2"
    lines = [
        f"env {shared} JAX_PROCESS_ID={i} JAX_NUM_CPU_DEVICES=3 JAX_PLATFORMS=cpu vit_jax train --config digits "
        "--workdir 'a b'"
        for i in range(2)
    ]
    assert capsys.readouterr().out.splitlines() == lines


def test_what_the_user_chose_stays_but_for_the_number_of_devices():
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"
    added = local.environment(1, 4, 2, 7001, {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": flags})
    assert added["JAX_PLATFORMS"] == "cuda" and added["XLA_FLAGS"] == "--xla_a=1 --xla_b=2"


@pytest.mark.parametrize("words", [[], ["--"], ["--", "models"], ["--", "launch", "local", "--", *TRAIN]])
def test_only_what_runs_on_several_hosts_is_launched(capsys, words):
    with pytest.raises(SystemExit) as e:
        cli.main(["launch", "local", *words])
    assert e.value.code == 2 and "give what the hosts are to run, one of train, " in capsys.readouterr().err


def test_a_mistake_in_the_command_is_found_before_anything_is_started(capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["launch", "local", "--", "train", "--workdri", "x"])
    assert e.value.code == 2 and "usage: vit_jax train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "status"),
    [((0, 0), 0), ((75, 75), 75), ((75, -9, 75), 75), ((1, 1), 1), ((2, 2), 2), ((0, 75), 1), ((0, -9), 1), ((-9,), 1)],
)
def test_the_exit_status_is_that_of_the_run(codes, status):
    assert local.status(codes) == status


def test_cores_are_shared():
    cores = sorted(os.sched_getaffinity(0))
    shares = [local._cores(host, len(cores)) for host in range(len(cores))]
    assert [sorted(share) for share in shares] == [[core] for core in cores]
    assert local._cores(0, 1) == set(cores)
    assert local._cores(len(cores), 2 * len(cores)) == {cores[0]}


def run(code, *hosts, monkeypatch=None):
    """Status of ``code`` run by several hosts, who find what is meant for them in ``X``."""
    return local.watch([sys.executable, "-c", code], [{"X": str(x)} for x in hosts])


def test_lines_of_others_have_their_number(capfd):
    assert run("import os; print('I am', os.environ['X'])", "a", "b") == 0
    done = capfd.readouterr()
    assert (done.out, done.err) == ("I am a\n", "host 2: I am b\n")


DIES = "import os, sys, time; x = os.environ['X']; time.sleep(60) if x == 'stays' else os.kill(os.getpid(), int(x))"


def test_the_one_that_dies_is_named_and_the_others_are_ended(capfd, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.2)
    assert run(DIES, "stays", 9) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "vit_jax launch: host 2 of 2 was ended by SIGKILL.",
        "vit_jax launch: host 1 of 2 was still there 0 s after the first had ended, and was killed.",
    ]


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(60)
"""


def test_a_signal_goes_to_all(monkeypatch):
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert run(WAITS, 0, 1) == 75
    timer.join()


LAUNCHER = """
import sys
from vit_jax.cli.launch import local
local.watch([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], [{}, {}])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell children that their parent died")
def test_hosts_do_not_outlive_a_launcher_that_is_killed():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [launcher.stdout.readline() for _ in range(2)]
    numbers = [int(line.split()[-1]) for line in lines]
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    end = time.monotonic() + 10
    while any(_lives(number) for number in numbers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_lives(number) for number in numbers)


def _lives(number):
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
