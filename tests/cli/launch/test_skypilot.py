"""The task of SkyPilot, read by SkyPilot's own loader where it is installed, and what is done with it."""

import json
import os
import subprocess

import pytest
import yaml

from vit_jax import cli
from vit_jax.hosts import RESUME
from vit_jax.launch import staging

RUN = ["launch", "skypilot", "--name", "job"]
TPU = ["--type", "v5e:4x4", "--spot", "--infra", "gcp/us-west4"]
GPU = ["--type", "H100:8", "--nodes", "2", "--env", "TOKEN=a: b"]
TRAIN = ["--", "train", "--config", "my/config.py", "--workdir", "gs://bucket/a run"]


@pytest.mark.parametrize(("name", "options"), [("tpu", TPU), ("gpu", GPU)])
def test_the_task(name, options, golden, stand_ins, capsys, tmp_path):
    assert cli.main([*RUN, *options, "--dry_run", *TRAIN]) == 0
    text = capsys.readouterr().out
    golden(f"skypilot_{name}.yaml", text, (str(tmp_path), "HOME"))
    assert yaml.safe_load(text)["resources"]["job_recovery"]["recover_on_exit_codes"] == [RESUME, 137, 143]
    assert stand_ins.calls() == []


READ = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps([task.num_nodes, resources.accelerators, resources.use_spot, resources.job_recovery]))
"""


@pytest.mark.peer
@pytest.mark.parametrize("options", [TPU, GPU], ids=["tpu", "gpu"])
def test_skypilot_reads_it(options, place, capsys, tmp_path):
    """By its own loader, in an environment of its own: it wants other versions of what is used here."""
    if not (python := os.environ.get("VIT_JAX_SKYPILOT")):
        pytest.skip("VIT_JAX_SKYPILOT does not name a Python that has SkyPilot")
    assert cli.main([*RUN, *options, "--dry_run", *TRAIN]) == 0
    (tmp_path / "cache" / "vit_jax" / "launch" / "job").mkdir(parents=True)  # which it looks for
    (tmp_path / "task.yaml").write_text(capsys.readouterr().out)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-c", READ, str(tmp_path / "task.yaml")], env=env, capture_output=True, text=True, check=True
    )
    nodes, accelerators, spot, recovery = json.loads(done.stdout)
    expected = (1, {"tpu-v5litepod-16": 1}, True) if options is TPU else (2, {"H100": 8}, False)
    assert (nodes, accelerators, spot) == expected
    assert recovery["recover_on_exit_codes"] == [RESUME, 137, 143] and recovery["max_restarts_on_errors"] == 3


def test_hosts_find_each_other(place, capsys, tmp_path):
    """The commands of the task, run by a shell with the variables that SkyPilot sets."""
    assert cli.main([*RUN, *GPU, "--dry_run", *TRAIN]) == 0
    task = yaml.safe_load(capsys.readouterr().out)
    program = tmp_path / "vit_jax_environment" / "bin" / "python"
    program.parent.mkdir(parents=True)
    names = "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    program.write_text(f'#!/bin/sh\necho "{names} $TOKEN: $*"\n')
    program.chmod(0o755)
    ips = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NODE_RANK": "1"}
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **ips, **task["envs"]}
    done = subprocess.run(["/bin/sh", "-c", task["run"]], env=env, capture_output=True, text=True, check=True)
    words = "-m vit_jax train --config my/config.py --workdir gs://bucket/a run"
    assert done.stdout == f"10.0.0.7:8476 2 1 a: b: {words}\n"


def test_it_is_launched(place, stand_ins, capsys, tmp_path, monkeypatch):
    filled = []
    monkeypatch.setattr(staging, "fill", lambda folder, extras, files: filled.append((extras, files)))
    assert cli.main([*RUN, *GPU, *TRAIN]) == 1
    assert "sky is not there; pip install 'skypilot[gcp]' in an environment of its own" in capsys.readouterr().err
    stand_ins.add("sky", {"launch": [0, 1]})
    assert cli.main([*RUN, *GPU, *TRAIN]) == 0
    assert filled == [(("cuda", "remote"), ["my/config.py"])]
    assert cli.main([*RUN, *TPU, *TRAIN]) == 1
    assert "sky jobs launch" in (said := capsys.readouterr().err) and "delete --name job ends what there is." in said
    for verb in ("status", "tail", "delete"):
        assert cli.main(["launch", "skypilot", verb, "--name", "job"]) == 0
    assert [call.replace(str(tmp_path), "HOME") for call in stand_ins.calls()] == [
        *["sky jobs launch --yes --detach-run --name=job HOME/cache/vit_jax/launch/job.yaml"] * 2,
        "sky jobs queue", "sky jobs logs --name=job", "sky jobs cancel --yes --name=job",
    ]  # fmt: skip
