"""``vit_jax launch``: one file a kind of machines, each with ``HELP``, ``arguments(parser)`` and ``run(args)``.

``args.words`` holds the command that every host runs, without the program's name; it is a sound one, and one that runs
on several hosts.
"""

from __future__ import annotations

import argparse

from vit_jax.cli.launch import docker, gcloud, gke, local, skypilot, slurm

HELP = "run a command on several hosts"
MODULES = (local, gcloud, gke, slurm, skypilot, docker)
KINDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.set_defaults(takes_words=True)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, module in KINDS.items():
        sub = kinds.add_parser(kind, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.arguments(sub)
        if kind != "docker":
            sub.epilog = "Then -- and what one host would run: -- train --config digits --workdir runs/digits"


def run(args: argparse.Namespace) -> int:
    """Starts the hosts."""
    return KINDS[args.kind].run(args)
