"""``vit_jax launch docker``: an image with the package, for ``gke`` and wherever containers run."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from vit_jax.cli import options
from vit_jax.cli.launch import request

HELP = "build the image that the containers of other kinds run"
EXTRAS = {"cpu": ("remote",), "cuda": ("cuda", "remote"), "tpu": ("tpu", "remote")}
"""Backend -> extras of the package in its image."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    parser.add_argument("--backend", choices=EXTRAS, default="tpu", help="what it computes on (default tpu)")
    parser.add_argument("--tag", type=options.filled, required=True, metavar="IMAGE", help="name of the image")
    parser.add_argument("--push", action="store_true", help="send it to the registry that its name says")
    parser.add_argument("--dry_run", action="store_true", help="print the Dockerfile and the commands and stop")
    parser.set_defaults(verb="build", wordless=("build",))


def run(args: argparse.Namespace) -> int:
    """Builds the image."""
    from vit_jax.io import text
    from vit_jax.launch import staging, tools

    file = Path(staging.__file__).parent / "docker" / f"{args.backend}.Dockerfile"
    push = ["docker", "push", args.tag]
    if args.dry_run:
        print(text.read(file))
        request.show(_build(args, "."), *([push] if args.push else []))
        return 0
    tools.needed("docker")
    with tempfile.TemporaryDirectory() as folder:
        staging.fill(Path(folder), EXTRAS[args.backend], ())
        (Path(folder) / "Dockerfile").write_bytes(file.read_bytes())
        tools.shown(_build(args, folder))
    if args.push:
        tools.shown(push, f"{args.tag} is built and stays here")
    return 0


def _build(args: argparse.Namespace, folder: str) -> list[str]:
    return ["docker", "build", f"--tag={args.tag}", folder]
