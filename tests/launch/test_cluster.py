"""What an environment says of hosts: of JAX's own variables and of clusters, whole, half and wrong."""

import pytest
from jax._src import clusters

from vit_jax.launch import cluster
from vit_jax.launch.cluster import Cluster
from vit_jax.types import UsageError

SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}


def explicit(address="10.0.0.1:1234", count="4", index="3"):
    given = {cluster.ADDRESS: address, cluster.COUNT: count, cluster.INDEX: index}
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture
def found(monkeypatch):
    """``described`` of an environment that is nothing else."""
    for name in (*SLURM, *OPEN_MPI, *explicit(), "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)

    def described(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return cluster.described(5)

    return described


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (explicit(), Cluster("10.0.0.1", 1234, 4, 3)),
        (explicit("[fe80::1]:80", "2", "0"), Cluster("fe80::1", 80, 2, 0)),
        (explicit(None, "1", "0"), None),
        (explicit("anything", "1", None), None),
        (SLURM, Cluster("node07", 65535 - 2**12 + 1 + 5000 % 2**12, 2, 1, (0,))),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | explicit("node07:99", None, None), Cluster("node07", 99, 2, 1, (0,))),
        (SLURM | explicit(), Cluster("10.0.0.1", 1234, 4, 3)),
        (OPEN_MPI, Cluster("10.96.0.1", 65535 - 2**12 + 1 + 1531576320 // 2**12 % 2**12, 4, 2, (2,))),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # some pod, of which nothing says that there are others
        ({"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8"}, None),  # a batch script outside of srun
    ],
)
def test_who_the_hosts_are(found, environment, expected):
    assert found(environment) == expected


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (explicit(None), "JAX_NUM_PROCESSES, JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS: set JAX_COORD"),
        (explicit(count=None), "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID without JAX_NUM_PROCESSES: set JAX_COORD"),
        (explicit(count=None, index=None), "JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID: set"),
        (explicit(index="4"), r"JAX_PROCESS_ID=4 is no number of 4 hosts; give 0 to 3\."),
        (explicit(index="-1"), "JAX_PROCESS_ID='-1' is no number of a host; set"),
        (explicit(count="many"), "JAX_NUM_PROCESSES='many' is no number of hosts; set"),
        (explicit(count="0"), "JAX_NUM_PROCESSES='0' is no number of hosts; set"),
        (explicit("1", "1", "1"), r"JAX_PROCESS_ID=1 is no number of 1 hosts; give 0 to 0\."),
        *((explicit(a), f"'{a}' is no HOST:PORT") for a in ("10.0.0.1", "10.0.0.1:", "10.0.0.1:70000", "http://a:80")),
        (
            SLURM | {"SLURM_NTASKS": "two"},
            r"SlurmCluster of JAX does not tell who the hosts are \(ValueError: invalid .*'two'\); set",
        ),
    ],
)
def test_half_and_wrong_descriptions_are_a_sentence(found, environment, sentence):
    with pytest.raises(UsageError, match=sentence):
        found(environment)


def test_a_pod_of_tpus_is_asked_for_its_workers(found, monkeypatch):
    kind = clusters.GkeTpuCluster
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(kind, "wait_for_coordinator", lambda *_: None)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.get_tpu_env_value", lambda _: None)
    workers = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}
    assert found(workers) == Cluster("a", 8482, 4, 2)
    assert found(workers | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_a_numbered_job_of_kubernetes_is_asked(found, monkeypatch):
    kind = clusters.K8sCluster
    monkeypatch.setattr(kind, "is_env_present", lambda: True)
    monkeypatch.setattr(kind, "get_process_count", lambda: 2)
    monkeypatch.setattr(kind, "get_coordinator_address", lambda *_: "job-0.pods:55527")
    assert found({}) is None
    assert found({"JOB_COMPLETION_INDEX": "1"}) == Cluster("job-0.pods", 55527, 2, 1)
