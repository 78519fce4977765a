"""The programs of others by which machines are had: called with lists of words, their failures said in one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from vit_jax.types import UserError

SOURCES = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then gcloud auth login",
    "kubectl": "install it (kubernetes.io/docs/tasks/tools), then "
    "gcloud container clusters get-credentials CLUSTER --location ZONE",
    "sbatch": "run this on a login node of the cluster",
    "squeue": "run this on a login node of the cluster",
    "scancel": "run this on a login node of the cluster",
    "sky": "pip install 'skypilot[gcp]' in an environment of its own, then sky check",
    "docker": "install it (docs.docker.com/engine/install)",
}
"""Program -> how to get it."""
LINE = 300


class Failed(UserError):
    """A program ended with another exit status than 0; the message has what it called an error, or its last line.

    Attributes:
      said: all that it wrote to its error stream.
    """

    said = ""


def needed(*programs: str) -> None:
    """Raises UserError where a program is not there."""
    for program in programs:
        if shutil.which(program) is None:
            raise UserError(f"{program} is not there; {SOURCES[program]}.")


def output(words: Sequence[str], there: str = "", stdin: str | None = None, seconds: float | None = None) -> str:
    """What a program prints; bytes that are no UTF-8 as Python escapes them.

    Args:
      words: the program and its arguments.
      there: what there is already and how to get rid of it, as the end of a sentence; said where the program fails.
      stdin: what it reads.
      seconds: that it may take.

    Raises:
      Failed: it did.
      UserError: it is not there.
    """
    needed(words[0])
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="surrogateescape", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise _failed(words, f"did not end within {seconds:.0f} s", "", there) from None
    if done.returncode:
        raise _failed(words, f"failed with exit status {done.returncode}", done.stderr or done.stdout, there)
    return done.stdout


def shown(words: Sequence[str], there: str = "") -> None:
    """Runs a program whose output goes where that of this one does; raises as :func:`output` does."""
    needed(words[0])
    if status := subprocess.run(words).returncode:
        raise _failed(words, f"failed with exit status {status}", "", there)


def _failed(words: Sequence[str], how: str, said: str, there: str) -> Failed:
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    last = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "")[:LINE].rstrip(".:")
    verbs = [word for word in words[1:] if not word.startswith("-")][:4]
    error = Failed(f"{' '.join([words[0], *verbs])} {how}{f': {last}' if last else ''}{f'; {there}' if there else ''}.")
    error.said = said
    return error
