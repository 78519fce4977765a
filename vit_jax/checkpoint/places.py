"""Which checkpoints there are: ``checkpoints/<step>`` in the folder of a run."""

from __future__ import annotations

import pathlib
import re

from vit_jax.io import mirror
from vit_jax.types import UserError

FOLDER = "checkpoints"


BEST = "val/accuracy"
"""The metric that decides which checkpoint is the best, where a configuration names no other."""


def sign(metric: str) -> float:
    """1 where more is better, -1 where less is: a loss or a calibration error."""
    return -1.0 if metric.endswith(("loss", "ece", "rank")) else 1.0


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints in ``folder``, newest first; unfinished ones have other names."""
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in there if re.fullmatch(r"\d+", p.name)), key=lambda p: -int(p.name))


def find(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Checkpoint folders under ``path`` (a workdir, its ``checkpoints`` or one step's folder), newest first.

    Those at an address are in its mirror, see :mod:`vit_jax.io.mirror`.

    Raises:
      UserError: there are none, or the address cannot be read.
    """
    root = mirror.local(path)
    if not root.is_dir():
        raise UserError(f"no checkpoint at {str(path)!r}: no such folder; give a workdir or WORKDIR/checkpoints/STEP.")
    if (root / "params").is_dir():
        return [root]
    found = steps(root / FOLDER if (root / FOLDER).is_dir() else root)
    if not found:
        raise UserError(f"no checkpoint in {str(path)!r}; train there first, or give WORKDIR/checkpoints/STEP.")
    return found


def kept(folder: pathlib.Path) -> str:
    """What is left of a run whose checkpoints lie in ``folder``, as the end of a sentence about what went wrong."""
    if (run := mirror.of(folder)) and not run.lease:  # of another host, who sends them
        return f"what is in {run.address} is intact"
    there = steps(folder)
    return f"the checkpoint of step {there[0].name} is intact" if there else "there is no checkpoint yet"
