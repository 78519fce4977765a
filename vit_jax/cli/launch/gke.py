"""``vit_jax launch gke``: a JobSet of Kubernetes on the TPU nodes of GKE, one pod a host.

The manifest has the labels, the names and the policies that xpk gives its workloads, so that xpk lists it and Kueue
queues it. A pod that ends with :data:`vit_jax.hosts.RESUME`, or by a signal, or with its node, starts all pods again;
any other exit status ends the JobSet. The user's configuration files go along as a ConfigMap.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.cli import options
from vit_jax.cli.launch import request

HELP = "a JobSet on TPU nodes of Google Kubernetes Engine, xpk-compatible"
CONTAINER = "jax-tpu"
FOLDER = "/work"
"""Where the command runs in the container, and its files are."""
PORTS = (8471, 8080)
"""Of libtpu, between hosts and between slices."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    request.arguments(parser, "run", "status", "tail", "delete")
    parser.add_argument("--type", type=options.filled, help="the slice, v5litepod-256 or v5e:16x16")
    parser.add_argument("--image", type=options.filled, help="of the container; vit_jax launch docker builds one")
    options.value(parser, "slices", 1, "slices of that type", 256, metavar="N")
    options.value(parser, "restarts", 100, "how often all pods are started again", least=0, metavar="N")
    options.value(parser, "grace", 120, "seconds that a pod has to save where it is ended", least=1, metavar="S")
    options.value(parser, "namespace", "default", "of the cluster", metavar="NAME")
    options.value(
        parser, "queue", "multislice-queue", "LocalQueue of Kueue, ignored where there is no Kueue", metavar="NAME"
    )
    parser.add_argument("--context", type=options.filled, help="cluster (default: the current one of kubectl)")
    parser.add_argument("--service_account", type=options.filled, metavar="NAME", help="who the pods are, for gs://")
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken away")
    request.variables(parser)
    request.shared_workdir(parser)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says."""
    return {"run": _run, "status": _status, "tail": _tail, "delete": _delete}[args.verb](args)


def documents(args: argparse.Namespace, slice: Any, files: Mapping[str, str]) -> list[dict[str, Any]]:
    """What Kubernetes is told: the JobSet, before it the ConfigMap of ``files`` (path -> text) where there are some."""
    labels = {"xpk.google.com/workload": args.name}
    meta = {"name": args.name, "namespace": args.namespace}
    keys = {name: f"file-{i}" for i, name in enumerate(files)}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "labels": dict(labels)},
        "data": {keys[name]: text for name, text in files.items()},
    }
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            **meta,
            "labels": {"kueue.x-k8s.io/queue-name": args.queue, **labels},
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
                "maxRestarts": args.restarts,
            },
            "replicatedJobs": [
                {"name": "slice-job", "replicas": args.slices, "template": {"spec": _job(args, slice, keys, labels)}}
            ],
        },
    }
    return [config, job_set] if files else [job_set]


def _job(args: argparse.Namespace, slice: Any, keys: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    exits = {"containerName": CONTAINER, "operator": "NotIn", "values": request.again()}
    return {
        "parallelism": slice.nodes,
        "completions": slice.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exits}]},
        "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(args, slice, keys)},
    }


def _pod(args: argparse.Namespace, slice: Any, keys: Mapping[str, str]) -> dict[str, Any]:
    variables = {"JAX_PLATFORMS": "tpu,cpu", **request.environment(args)}
    container = {
        "name": CONTAINER,
        "image": args.image,
        "command": ["python", "-m", "vit_jax", *args.words],
        "workingDir": FOLDER,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "ports": [{"containerPort": port} for port in PORTS],
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": slice.node}},
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slice.generation.label,
        "cloud.google.com/gke-tpu-topology": slice.shape,
    }
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "nodeSelector": selector,
        "tolerations": [{"operator": "Exists", "key": "google.com/tpu"}],
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": args.grace,
        "containers": [container],
    }
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    if keys:
        items = [{"key": key, "path": name} for name, key in keys.items()]
        pod["volumes"] = [{"name": "files", "configMap": {"name": args.name, "items": items}}]
        container["volumeMounts"] = [{"name": "files", "mountPath": FOLDER}]
    return pod


def _run(args: argparse.Namespace) -> int:
    from vit_jax.io import text
    from vit_jax.launch import manifest, staging, tools, topologies
    from vit_jax.types import UsageError

    for option, example in (("type", "v5e:16x16"), ("image", "REGION-docker.pkg.dev/PROJECT/REPOSITORY/vit_jax")):
        if not vars(args)[option]:
            raise UsageError(f"--{option} is missing, such as --{option} {example}.")
    slice = topologies.find(args.type)
    request.check(args, slice.nodes * args.slices)
    files = {name: text.read(name) for name in staging.own_files(args.words)}
    said = manifest.dump(*documents(args, slice, files))
    if args.dry_run:
        print(said, end="")
        return 0
    if (state := _state(args)) is not None:
        print(f"{args.name} is there ({state}); vit_jax launch gke delete --name {args.name} ends it.")
        return 0
    tools.output(_kubectl(args, "apply", "--filename=-"), f"{_remedy(args)} removes what was made", stdin=said)
    pods = slice.nodes * args.slices
    print(f"{args.name}: {pods} pod{'s' * (pods > 1)} on {args.slices} x {slice.type} asked for")
    return 0


def _state(args: argparse.Namespace) -> str | None:
    """Conditions and restarts of the JobSet, None where there is none."""
    from vit_jax.launch import tools

    fields = '{.status.terminalState} {.status.restarts} restarts {.status.conditions[?(@.status=="True")].type}'
    words = _kubectl(args, "get", "jobset", args.name, "--ignore-not-found", f"--output=jsonpath={fields}")
    return " ".join(tools.output(words).split()) or None


def _status(args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    pods = _kubectl(args, "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={args.name}", "--output=wide")
    if args.dry_run:
        request.show(pods)
        return 0
    state = _state(args)
    print(f"{args.name}: {state or 'not there'}")
    if state is not None:
        tools.shown(pods)
    return 0


def _tail(args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    of_all = f"jobset.sigs.k8s.io/jobset-name={args.name}"
    first = f"{of_all},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    words = _kubectl(args, "logs", "--follow", f"--selector={first}", f"--container={CONTAINER}", "--tail=-1")
    if args.dry_run:
        request.show(words)
    else:
        tools.shown(words)
    return 0


def _delete(args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    words = _kubectl(args, "delete", f"jobset/{args.name}", f"configmap/{args.name}", "--ignore-not-found")
    if args.dry_run:
        request.show(words)
    else:
        print(tools.output(words).strip() or f"{args.name}: not there")
    return 0


def _remedy(args: argparse.Namespace) -> str:
    return f"vit_jax launch gke delete --name {args.name}"


def _kubectl(args: argparse.Namespace, *words: str) -> Sequence[str]:
    context = [f"--context={args.context}"] if args.context else []
    return ["kubectl", *context, f"--namespace={args.namespace}", *words]
