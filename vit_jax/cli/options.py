"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from typing import Any


def weights(parser: argparse.ArgumentParser) -> None:
    """The model of a command that applies one: of a run, or of weights in any format."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="DIR", help="folder of a run; its newest checkpoint")
    text = "one checkpoint: WORKDIR/checkpoints/STEP, or weights of any format: a path, hf://ORG/NAME"
    which.add_argument("--checkpoint", metavar="X", help=text)


def value(parser: argparse.ArgumentParser, name: str, default: Any, text: str, **more: Any) -> None:
    """``--name`` of the type of its ``default``, which the help says; ``more`` goes to ``add_argument``."""
    parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default {default})", **more)


def json(parser: argparse.ArgumentParser, what: str) -> None:
    """Where ``vit_jax.cli.output`` writes."""
    parser.add_argument("--json", metavar="FILE", help=f"write the {what} there, - for the terminal")
