"""The manifest of a JobSet, and what is done with it."""

import pytest
import yaml

from vit_jax import cli
from vit_jax.hosts import RESUME

RUN = ["launch", "gke", "--name", "pod", "--type", "v5p:2x2x2", "--image", "europe-docker.pkg.dev/p/r/vit_jax"]
TRAIN = ["--", "train", "--config", "my/config.py", "--workdir", "gs://bucket/run"]


def test_the_manifest(golden, stand_ins, capsys):
    more = ["--slices", "2", "--spot", "--service_account", "writer", "--env", "TOKEN=a: b"]
    assert cli.main([*RUN, *more, "--dry_run", *TRAIN]) == 0
    text = capsys.readouterr().out
    golden("gke.yaml", text)
    config, job_set = yaml.safe_load_all(text)
    spec = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-4:] == TRAIN[-4:] and config["data"]["file-0"].startswith('"""Mine."""')
    assert RESUME in spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    for verb in ("status", "tail", "delete"):
        assert cli.main(["launch", "gke", verb, "--name", "pod", "--context", "mine", "--dry_run"]) == 0
    golden("gke_verbs.txt", capsys.readouterr().out)
    assert stand_ins.calls() == []


@pytest.mark.parametrize(("slice", "pods", "chips"), [("v5litepod-256", 64, 4), ("v5e:1x1", 1, 1), ("v5p-16", 2, 4)])
def test_a_pod_is_a_host(slice, pods, chips, place, stand_ins, capsys):
    words = ["--", "train", "--config", "digits", "--workdir", "gs://bucket/run"]
    assert cli.main([*RUN, "--type", slice, "--dry_run", *words]) == 0
    (job_set,) = yaml.safe_load_all(capsys.readouterr().out)  # no file of one's own, no ConfigMap
    spec = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (spec["parallelism"], spec["completions"]) == (pods, pods)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_it_is_applied_once(place, stand_ins, capsys):
    stand_ins.add("kubectl", {"get": [(0, ""), (0, " 2 restarts StartupPolicyCompleted")]}, reads=True)
    assert cli.main([*RUN, *TRAIN]) == 0
    assert "kind: JobSet" in stand_ins.stdin("kubectl")
    assert cli.main([*RUN, *TRAIN]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pod: 2 pods on 1 x v5p-16 asked for",
        "pod is there (2 restarts StartupPolicyCompleted); vit_jax launch gke delete --name pod ends it.",
    ]
    assert [call.split()[2] for call in stand_ins.calls()] == ["get", "apply", "get"]
    assert stand_ins.calls()[1] == "kubectl --namespace=default apply --filename=-"


def test_failures(place, stand_ins, capsys):
    assert cli.main([*RUN, *TRAIN]) == 1
    assert "kubectl is not there; install it (" in capsys.readouterr().err
    stand_ins.add("kubectl", {"apply": [(1, "", 'error: no matches for kind "JobSet"\n')]})
    assert cli.main([*RUN, *TRAIN]) == 1
    assert capsys.readouterr().err == (
        'vit_jax launch: kubectl apply failed with exit status 1: error: no matches for kind "JobSet"; vit_jax launch '
        "gke delete --name pod removes what was made.\n"
    )
    assert cli.main([*RUN[:4], "--type", "v5e:4x4", *TRAIN]) == 2
    assert "--image is missing, such as --image REGION-docker" in capsys.readouterr().err


def test_verbs(stand_ins, capfd):
    gone = 'jobset.jobset.x-k8s.io "pod" deleted\n'
    stand_ins.add("kubectl", {"jobset pod": [(0, ""), (0, " 0 restarts ")], "delete": [(0, ""), (0, gone)]})
    for verb in ("status", "status", "tail", "delete", "delete"):
        assert cli.main(["launch", "gke", verb, "--name", "pod"]) == 0
    lines = ["pod: not there", "pod: 0 restarts", "pod: not there", gone.strip()]
    assert capfd.readouterr().out.splitlines() == lines
    assert [call.split()[2] for call in stand_ins.calls()] == ["get", "get", "get", "logs", "delete", "delete"]
