"""Images: what their files say, what is built, and what is sent."""

import shlex

import pytest

from vit_jax import cli
from vit_jax.launch import staging


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tpu"])
def test_a_dockerfile_copies_what_is_there_and_runs_the_package(backend, stand_ins, capsys):
    assert cli.main(["launch", "docker", "--backend", backend, "--tag", "r/vit_jax", "--push", "--dry_run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("#")]
    words = [(line.split()[0], shlex.split(line)[1:]) for line in lines]
    assert words[0] == ("FROM", ["python:3.12-slim"])
    assert [rest[0] for verb, rest in words if verb == "COPY"] == ["requirements.txt", "vit_jax"]
    (variables,) = [dict(word.split("=") for word in rest) for verb, rest in words if verb == "ENV"]
    assert variables["JAX_PLATFORMS"].split(",")[0] == backend and variables["PYTHONPATH"] == "/opt/vit_jax"
    assert lines[-3:] == [
        'ENTRYPOINT ["python", "-m", "vit_jax"]', "docker build --tag=r/vit_jax .", "docker push r/vit_jax",
    ]  # fmt: skip
    assert stand_ins.calls() == []


def test_it_is_built_and_sent(stand_ins, capsys, monkeypatch):
    monkeypatch.setattr(staging, "fill", lambda folder, extras, files: None)
    build = ["launch", "docker", "--tag", "r/vit_jax", "--push"]
    assert cli.main(build) == 1
    assert "docker is not there; install it (" in capsys.readouterr().err
    stand_ins.add("docker", {"push": [0, 1]})
    assert cli.main(build) == 0
    assert [call.split()[1] for call in stand_ins.calls()] == ["build", "push"]
    assert cli.main(build) == 1
    assert "docker push r/vit_jax failed with exit status 1; r/vit_jax is built and stays" in capsys.readouterr().err
