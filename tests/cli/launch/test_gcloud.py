"""Slices of Google Cloud: the command lines, and what is done where they fail or the slice is taken away."""

import shutil
import subprocess
import sys
import tarfile
import time

import pytest

from vit_jax import cli
from vit_jax.cli.launch import gcloud
from vit_jax.launch import staging

POD = ["--name", "pod", "--zone", "us-west4-a"]
SLICE = [*POD, "--type", "v5e:4x4"]
TRAIN = ["--", "train", "--config", "my/config.py", "--workdir", "gs://bucket/a run"]
MISSING = (1, "", "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'pod' was not found\n- more\n")
NONE = (0, "Generating a key\nstate none\n")


@pytest.fixture(autouse=True)
def at_once(request, monkeypatch):
    monkeypatch.setattr(gcloud, "POLL", 0.0)
    if request.function is not test_what_is_sent:  # half a second each
        monkeypatch.setattr(staging, "fill", lambda folder, extras, files: None)


def looks(*states):
    """Rules: the slice comes at the third look; then the command is as ``states`` say."""
    waiting = [MISSING, (0, "WAITING_FOR_RESOURCES\n"), (0, "ACTIVE\n")]
    said = [f"state {state}" if "\n" in state else f"state {state}\n" for state in states]
    return {"describe": waiting, "look": [NONE, *((0, text) for text in said)]}


def test_a_dry_run_prints_every_command(golden, stand_ins, capsys):
    assert cli.main(["launch", "gcloud", *SLICE, "--project", "mine", "--spot", "--dry_run", *TRAIN]) == 0
    golden("gcloud.txt", capsys.readouterr().out)
    for verb in ("status", "tail", "stop", "delete"):
        assert cli.main(["launch", "gcloud", verb, *POD, "--no_queue", "--dry_run"]) == 0
    golden("gcloud_verbs.txt", capsys.readouterr().out)
    assert stand_ins.calls() == []


def test_a_slice_is_asked_for_waited_for_filled_and_followed(place, stand_ins, capsys, golden):
    stand_ins.add("gcloud", looks("running\none\n", "running\ntwo", "ended 0\n!\n"))
    assert cli.main(["launch", "gcloud", *SLICE, "--project", "mine", "--spot", *TRAIN]) == 0
    done = capsys.readouterr()
    assert done.out == "one\ntwo!\n"
    assert done.err.replace("vit_jax launch: ", "").splitlines() == [
        "pod: asked for v5litepod-16 in us-west4-a.",
        "pod is WAITING_FOR_RESOURCES; waiting.",
        "pod: sending the package and 1 file, then installing.",
        "pod runs it on 4 hosts.",
        "the run ended with exit status 0; pod is paid for until it is deleted: vit_jax launch gcloud delete --name "
        "pod --zone us-west4-a --project mine gives it back.",
    ]
    calls = stand_ins.calls()
    offsets = [call.split(" look ")[1].split()[0] for call in calls if " look " in call]
    assert offsets == ["1", "1", "5", "8"]  # each byte is printed once
    kept = [call for call in calls if " look " not in call and "describe" not in call]
    sent = next(call for call in kept if " scp " in call).split()[5]
    golden("gcloud_calls.txt", "\n".join(kept).replace(sent, "pod.tar.gz") + "\n")


def test_the_same_command_goes_on(place, stand_ins, capsys):
    stand_ins.add("gcloud", {"describe": [(0, "ACTIVE\n")], "look": [(0, "state running\n"), (0, "state ended 1\n")]})
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 1
    assert "pod is ACTIVE.\nvit_jax launch: pod runs it already.\n" in capsys.readouterr().err
    assert {call.split()[4] for call in stand_ins.calls()} == {"describe", "ssh"}


@pytest.mark.parametrize("gone", ["SUSPENDED", "lost", "ended 75", "ended 137"])
def test_what_is_taken_away_is_asked_for_and_started_again(gone, place, stand_ins, capsys):
    """The slice is preempted while its output is followed, a host dies, or the command saved and stopped."""
    rules = looks("running\nstep 1\n", gone, "none", "running\nstep 2\n", "ended 0\n")
    if gone == "SUSPENDED":
        rules["look"][2] = (255, "", "ssh: no route to host\n")
        rules["describe"] += [(0, f"{gone}\n"), (0, f"{gone}\n"), MISSING, (0, "ACTIVE\n")]
    stand_ins.add("gcloud", rules)
    assert cli.main(["launch", "gcloud", *SLICE, "--delete_after", *TRAIN]) == 0
    done = capsys.readouterr()
    assert done.out == "step 1\nstep 2\npod: deleted\n"
    said = {"SUSPENDED": "was taken away", "lost": "lost the command"}.get(gone, "stopped and can go on")
    assert f"pod {said}: once more." in done.err
    verbs = [call.split()[4] for call in stand_ins.calls() if "ssh" not in call and "describe" not in call]
    again = ["delete", "create"] if gone == "SUSPENDED" else []
    assert verbs == ["create", "scp", *again, "scp", "delete"]


def test_a_slice_that_is_taken_away_while_it_is_filled(place, stand_ins, capsys):
    rules = looks("ended 0\n")
    rules["look"].insert(1, NONE)
    rules["describe"] = [(0, "ACTIVE\n"), (0, "SUSPENDED\n"), (0, "SUSPENDED\n"), MISSING, (0, "ACTIVE\n")]
    stand_ins.add("gcloud", {**rules, "host.sh install": [(255, "", "ssh: connection lost\n"), 0]})
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 0
    assert "pod was taken away: once more.\nvit_jax launch: pod is SUSPENDED: it is given" in capsys.readouterr().err


def test_what_was_stopped_stays_so(place, stand_ins, capsys):
    stand_ins.add("gcloud", looks("running\n", "stopped 75\n"))
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 75
    assert "the run stopped with exit status 75; pod is paid for until it is deleted" in capsys.readouterr().err


def test_that_it_is_never_started_for_ever(place, stand_ins, capsys):
    stand_ins.add("gcloud", {"describe": [(0, "ACTIVE\n")], "look": [NONE, (0, "state ended 75\n")]})
    assert cli.main(["launch", "gcloud", *SLICE, "--restarts", "1", *TRAIN]) == 1
    assert "pod was started 2 times and has not ended; vit_jax launch gcloud delete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            {"describe": [(1, "", "ERROR: (gcloud) log in first.\n$ gcloud auth login\n")]},
            "gcloud compute tpus queued-resources describe failed with exit status 1: ERROR: (gcloud) log in first.",
        ),
        (
            {"describe": [MISSING], "create": [(1, "", "Quota exceeded.\n")]},
            "gcloud compute tpus queued-resources create failed with exit status 1: Quota exceeded; pod may be there; "
            "vit_jax launch gcloud delete --name pod --zone us-west4-a gives it back.",
        ),
        (
            {"describe": [MISSING, (0, "FAILED\n")]},
            "pod came to be FAILED; gcloud may say why. vit_jax launch gcloud delete",
        ),
        ({"describe": [(0, "NEWLY_NAMED\n")]}, "pod is in the state 'NEWLY_NAMED', which is not known here."),
        (
            {"describe": [(0, "ACTIVE\n")], "look": [NONE], "install": [(1, "", "no space left\n")]},
            "gcloud compute tpus tpu-vm ssh failed with exit status 1: no space left; pod is there and is paid for; "
            "vit_jax launch gcloud delete --name pod --zone us-west4-a gives it back.",
        ),
        (
            {"describe": [(0, "ACTIVE\n")], "look": [(0, "state running\n"), (255, "", "timed out\n")]},
            "gcloud compute tpus tpu-vm ssh failed with exit status 255: timed out; vit_jax launch gcloud delete",
        ),
    ],
)
def test_a_failure_says_what_there_is_and_how_to_get_rid_of_it(rules, said, place, stand_ins, capsys):
    stand_ins.add("gcloud", rules)
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 1
    assert said in capsys.readouterr().err


def test_without_the_program(place, stand_ins, capsys):
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 1
    assert "gcloud is not there; install the Google Cloud CLI (" in capsys.readouterr().err


def test_every_verb_says_what_there_is(stand_ins, capsys):
    stand_ins.add("gcloud", {"describe": [MISSING, MISSING, (0, "READY\n")], "look": [(0, "state ended 75\n")]})
    for verb in ("status", "delete", "status", "stop", "delete"):
        assert cli.main(["launch", "gcloud", verb, *POD]) == 0
    assert capsys.readouterr().out.replace("pod: ", "").splitlines() == [
        "not there", "not there", "READY; the command: ended 75", "it saves and ends", "deleted",
    ]  # fmt: skip
    stand_ins.add("gcloud", {"look": [(0, "state none\n")]})
    assert cli.main(["launch", "gcloud", "tail", *POD]) == 1
    assert "nothing runs on pod; vit_jax launch gcloud status --name pod --zone" in capsys.readouterr().err


def test_an_interruption_leaves_the_run_and_says_so(place, stand_ins, capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    stand_ins.add("gcloud", looks("running\n"))
    assert cli.main(["launch", "gcloud", *SLICE, *TRAIN]) == 1
    said = capsys.readouterr().err
    assert "what there is of pod stays, and the same command goes on; vit_jax" in said and "interrupted." in said


PYTHON = """\
#!/bin/sh
echo "words: $* $MINE"
trap 'sleep 0.2; exit 75' TERM
[ "$3" != short ] || exit 3
while :; do sleep 0.05; done
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("setsid"), reason="the script is for hosts with Linux")
def test_the_script_of_a_host(tmp_path):
    """Starts once, tells how it is, lets the command save where it is stopped, and keeps its exit status."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "environment").write_text("export MINE='a b'\n")
    (tmp_path / "venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)

    def host(*verb):
        done = subprocess.run(["sh", str(tmp_path / "host.sh"), *verb], capture_output=True, text=True, check=True)
        return gcloud._state_of(done.stdout)

    def until(state):
        end = time.monotonic() + 20
        while host("look", "1")[0] != state:
            assert time.monotonic() < end
            time.sleep(0.05)

    (tmp_path / "host.sh").write_text(gcloud.host_script(["long", "it's"]))
    assert host("look", "1") == ("none", "")
    host("start")
    until("running")
    while not host("look", "1")[1]:
        time.sleep(0.05)
    host("start")  # again: nothing happens
    assert host("look", "8") == ("running", "-m vit_jax long it's a b\n")
    host("stop")
    until("stopped 75")
    (tmp_path / "host.sh").write_text(gcloud.host_script(["short"]))
    host("start")
    until("ended 3")
    (tmp_path / "status").unlink()
    until("lost")


def test_what_is_sent(place, tmp_path, monkeypatch):
    """The package, its recipes, what it requires, the script, the variables and the user's file."""
    from vit_jax.launch import tools

    seen = {}

    def output(words, there="", stdin=None):
        if "scp" in words:
            with tarfile.open(words[5]) as tar:
                names = [
                    "host.sh",
                    "environment",
                    "code/requirements.txt",
                    "code/my/config.py",
                    "code/vit_jax/py.typed",
                ]
                seen.update({name: tar.extractfile(f"pod/{name}").read().decode() for name in names})
                seen["all"] = [name for name in tar.getnames() if "/tests" in name or "__pycache__" in name]
        return "state ended 0\n"

    monkeypatch.setattr(tools, "output", output)
    args = cli.parse(["launch", "gcloud", *SLICE, "--env", "A=b c", *TRAIN])
    gcloud._stage(gcloud.Machines("pod", (), True), args, ["my/config.py"], "")
    assert "-m vit_jax train --config my/config.py --workdir 'gs://bucket/a run' &" in seen["host.sh"]
    assert seen["environment"] == "export A='b c'\n" and seen["all"] == []
    assert "jax[tpu]\n" in seen["code/requirements.txt"] and '"""Mine."""' in seen["code/my/config.py"]
