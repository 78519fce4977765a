"""The batch script, which is run here with stand-ins, and what is done with it."""

import subprocess
import sys

import pytest

from vit_jax import cli

RUN = ["launch", "slurm", "--name", "job", "--nodes", "4", "--gpus_per_node", "8", "--time", "2-00:00:00"]
TRAIN = ["--", "train", "--config", "my/config.py", "--workdir", "a run"]


def test_the_script(golden, stand_ins, capsys):
    more = ["--partition", "gpu", "--account", "mine", "--cpus_per_task", "12", "--sbatch=--constraint=h100"]
    own = ["--setup", "module load cuda", "--env", "A=b c"]
    assert cli.main([*RUN, *more, *own, "--dry_run", *TRAIN]) == 0
    golden("slurm.sh", capsys.readouterr().out, (sys.executable, "python"))
    for verb in ("status", "delete"):
        assert cli.main(["launch", "slurm", verb, "--name", "job", "--dry_run"]) == 0
    golden("slurm_verbs.txt", capsys.readouterr().out)
    assert stand_ins.calls() == []


@pytest.mark.parametrize(
    ("status", "before", "again"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (75, 0, True), (75, 99, True), (75, 100, False), (137, 0, True)],
)
def test_it_is_queued_again_where_it_can_go_on(status, before, again, place, stand_ins, capsys):
    assert cli.main([*RUN, "--dry_run", *TRAIN]) == 0
    stand_ins.add("srun", {"train": [status]})
    stand_ins.add("scontrol")
    env = {"PATH": str(stand_ins.folder / "bin"), "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": str(before)}
    script = capsys.readouterr().out
    assert subprocess.run(["/bin/bash", "-c", script], env=env, capture_output=True).returncode == status
    run, *rest = stand_ins.calls()
    assert run == f"srun {sys.executable} -m vit_jax train --config my/config.py --workdir 'a run'"
    assert rest == (["scontrol requeue 12"] if again else [])


def test_it_is_submitted_once(place, stand_ins, capsys):
    stand_ins.add("squeue", {"": [(0, ""), (0, "  12 RUNNING\n")]})
    stand_ins.add("sbatch", {"": [(0, "12;cluster\n")]}, reads=True)
    assert cli.main([*RUN, *TRAIN]) == cli.main([*RUN, *TRAIN]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"job: job 12, its output in {place / 'job-12.log'}",
        "job is there: 12 RUNNING; vit_jax launch slurm delete --name job ends it.",
    ]
    assert "#SBATCH --signal=TERM@120\n" in stand_ins.stdin("sbatch")
    assert [call.split()[0] for call in stand_ins.calls()] == ["squeue", "sbatch", "squeue"]


def test_verbs_and_failures(place, stand_ins, capsys):
    assert cli.main([*RUN, *TRAIN]) == 1
    assert "sbatch is not there; run this on a login node of the cluster." in capsys.readouterr().err
    stand_ins.add("squeue", {"": [(0, ""), (0, ""), (0, "12 PENDING\n13 RUNNING\n")]})
    stand_ins.add("scancel")
    for verb in ("status", "delete", "delete"):
        assert cli.main(["launch", "slurm", verb, "--name", "job"]) == 0
    lines = ["job: not there", "job: not there", "job: cancelled 12 PENDING, 13 RUNNING"]
    assert capsys.readouterr().out.splitlines() == lines
    stand_ins.add("squeue")
    stand_ins.add("sbatch", {"": [(1, "", "sbatch: error: Invalid partition\n")]})
    assert cli.main([*RUN, *TRAIN]) == 1
    assert "sbatch failed with exit status 1: sbatch: error: Invalid partition." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*RUN, "--time", "soon", *TRAIN])
    assert "'soon' is no time limit; give 12:00:00 or 2-00:00:00" in capsys.readouterr().err
