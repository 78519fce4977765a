"""What every launcher is told, and refuses before anything is created."""

import pytest

from vit_jax import cli

TRAIN = ["--", "train", "--config", "digits", "--workdir", "runs/digits"]
KINDS = {
    "gcloud": ["--zone", "us-west4-a", "--type", "v5e:4x4"],
    "gke": ["--type", "v5e:4x4", "--image", "mine"],
    "skypilot": ["--type", "H100:8", "--nodes", "2"],
    "slurm": [],
}


def refused(capsys, *argv):
    """What is said of wrong usage."""
    try:
        status = cli.main(["launch", *argv])
    except SystemExit as e:
        status = e.code
    assert status == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_is_needed_to_run_and_a_name_that_clouds_take(kind, capsys, stand_ins):
    assert "give what the hosts are to run, one of train" in refused(capsys, kind, "--name", "a", *KINDS[kind])
    said = refused(capsys, kind, "--name", "My_run", *KINDS[kind], *TRAIN)
    assert "'My_run' is no name that clouds allow; give up to 40 small letters" in said
    assert "arguments are required: --name" in refused(capsys, kind, *KINDS[kind], *TRAIN)
    assert "'a-b=c' is not NAME=VALUE" in refused(capsys, kind, "--name", "a", "--env", "a-b=c", *KINDS[kind], *TRAIN)
    assert stand_ins.calls() == []


@pytest.mark.parametrize("kind", ["gcloud", "gke", "skypilot"])
def test_a_folder_of_one_machine_is_refused_unless_all_see_it(kind, capsys, stand_ins):
    said = refused(capsys, kind, "--name", "a", *KINDS[kind], *TRAIN)
    hosts = 2 if kind == "skypilot" else 4
    assert said == (
        f"vit_jax launch: --workdir 'runs/digits' is a folder of one machine, and {hosts} hosts are to write there and "
        "to find it again on other machines; give an address, such as gs://BUCKET/RUN, or --shared_workdir if all see "
        "it."
    )
    assert cli.main(["launch", kind, "--name", "a", *KINDS[kind], "--shared_workdir", "--dry_run", *TRAIN]) == 0
    one = {"gcloud": "v5e:2x4", "gke": "v5e:2x2", "skypilot": "v6e:2x4"}[kind]
    nodes = ["--nodes", "1"] if kind == "skypilot" else []
    assert cli.main(["launch", kind, "--name", "a", *KINDS[kind], "--type", one, *nodes, "--dry_run", *TRAIN]) == 0


@pytest.mark.parametrize("kind", ["gcloud", "gke", "skypilot"])
def test_a_slice_that_is_not_there_is_refused(kind, capsys, stand_ins):
    options = ["--name", "a", *KINDS[kind], "--type", "v5e:5x5"]
    assert "'v5e:5x5' is no slice of TPUs" in refused(capsys, kind, *options, *TRAIN)
    without = [word for word in KINDS[kind] if word not in ("--type", "v5e:4x4", "H100:8")]
    assert "--type" in refused(capsys, kind, "--name", "a", *without, *TRAIN)
