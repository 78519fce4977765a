"""``vit_jax launch skypilot``: a managed job of SkyPilot, on TPUs or GPUs of any cloud that it knows.

SkyPilot finds machines, sends them a folder with the package and the user's files, and starts the job again where a
machine is taken away or the command ends with :data:`vit_jax.hosts.RESUME`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli import options
from vit_jax.cli.launch import request

HELP = "a managed job of SkyPilot on TPUs or GPUs of many clouds"
PORT = 8476
"""Where the hosts meet on the first."""
SETUP = """\
python3 -m pip install --quiet --upgrade uv
python3 -m uv venv --quiet --allow-existing --python 3.12 ~/vit_jax_environment
python3 -m uv pip install --quiet --python ~/vit_jax_environment/bin/python --requirement requirements.txt
"""
RUN = """\
export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{port}"
export JAX_NUM_PROCESSES="$(echo "$SKYPILOT_NODE_IPS" | wc -l)"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
exec ~/vit_jax_environment/bin/python -m vit_jax {command}
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    request.arguments(parser, "run", "status", "tail", "delete")
    text = "of each node: a slice of TPUs, v5litepod-16 or v5e:4x4, or GPUs, H100:8"
    parser.add_argument("--type", type=options.filled, help=text)
    options.value(parser, "nodes", 1, "machines with GPUs, or slices of TPUs", 4096, metavar="N")
    parser.add_argument(
        "--infra", type=options.filled, metavar="CLOUD[/REGION[/ZONE]]", help="where (default: cheapest)"
    )
    parser.add_argument("--spot", action="store_true", help="cheaper, and taken away when others pay more")
    options.value(parser, "restarts", 3, "how often a command that failed is started again", least=0, metavar="N")
    request.variables(parser)
    request.shared_workdir(parser)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says."""
    return {"run": _run, "status": _status, "tail": _tail, "delete": _delete}[args.verb](args)


def task(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The task of ``sky jobs launch``; ``folder`` is sent to the machines."""
    from vit_jax.launch import topologies

    resources: dict[str, Any] = {}
    if args.infra:
        resources["infra"] = args.infra
    if is_tpu(args.type):
        slice = topologies.find(args.type)
        resources |= {
            "accelerators": f"tpu-{slice.type}:1",
            "accelerator_args": {"runtime_version": slice.generation.runtime},
        }
    else:
        resources["accelerators"] = args.type
    resources |= {
        "use_spot": args.spot,
        "job_recovery": {"max_restarts_on_errors": args.restarts, "recover_on_exit_codes": request.again()},
    }
    platforms = "tpu,cpu" if is_tpu(args.type) else "cuda,cpu"
    return {
        "name": args.name,
        "num_nodes": args.nodes,
        "resources": resources,
        "workdir": folder,
        "envs": {"JAX_PLATFORMS": platforms, **request.environment(args)},
        "setup": SETUP,
        "run": RUN.format(port=PORT, command=shlex.join(args.words)),
    }


def is_tpu(kind: str) -> bool:
    """Whether a type is one of TPUs: ``v5e:4x4`` and ``v5litepod-16``, not ``V100:8``."""
    from vit_jax.launch import topologies

    return (
        kind.startswith(tuple(generation.name for generation in topologies.GENERATIONS.values())) or "litepod" in kind
    )


def _run(args: argparse.Namespace) -> int:
    from vit_jax.io import atomic, cache
    from vit_jax.launch import manifest, staging, tools, topologies
    from vit_jax.types import UsageError

    if not args.type:
        raise UsageError("--type is missing, such as --type v5e:4x4 or --type H100:8.")
    tpu = is_tpu(args.type)
    request.check(args, args.nodes * (topologies.find(args.type).hosts if tpu else 1))
    files = staging.own_files(args.words)
    folder = Path(cache.folder("launch"), args.name)
    said = manifest.dump(task(args, str(folder)))
    if args.dry_run:
        print(said, end="")
        return 0
    tools.needed("sky")
    with atomic.new_folder(folder) as new:
        staging.fill(new, ("tpu" if tpu else "cuda", "remote"), files)
    atomic.write_text(folder.with_suffix(".yaml"), said)
    words = ["sky", "jobs", "launch", "--yes", "--detach-run", f"--name={args.name}", str(folder.with_suffix(".yaml"))]
    tools.shown(words, f"what was said is above; vit_jax launch skypilot delete --name {args.name} ends what there is")
    return 0


def _status(args: argparse.Namespace) -> int:
    return _done(args, ["sky", "jobs", "queue"])


def _tail(args: argparse.Namespace) -> int:
    return _done(args, ["sky", "jobs", "logs", f"--name={args.name}"])


def _delete(args: argparse.Namespace) -> int:
    return _done(args, ["sky", "jobs", "cancel", "--yes", f"--name={args.name}"])


def _done(args: argparse.Namespace, words: Sequence[str]) -> int:
    from vit_jax.launch import tools

    if args.dry_run:
        request.show(words)
    else:
        tools.shown(words)
    return 0
