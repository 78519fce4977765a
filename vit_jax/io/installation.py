"""Where this package's code comes from: a checkout and its commit, or what pip installed and its hashes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import vit_jax
from vit_jax.io import jsonfile, text

NAME = "vit_jax"


def for_children() -> dict[str, str]:
    """The variable with which processes started from here find this package, wherever they run, installed or not."""
    root = str(pathlib.Path(vit_jax.__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


@dataclasses.dataclass(frozen=True)
class Installation:
    """How the package got here.

    Attributes:
      folder: of the checkout; where pip installed a copy of one, that, if it is still there; else None.
      editable: whether the package is used where ``folder`` is, as ``pip install -e`` does it.
      requirement: what pip takes for it, but for extras: ``"vit_jax"``, or that and where it was installed from.
      commit: of the checkout, with ``-dirty`` where files were changed; or what pip installed from a repository.
      record: SHA-256 of the names and hashes of the installed files, the same wherever one wheel is installed; None in
        a checkout, whose files nobody recorded.
    """

    folder: pathlib.Path | None
    editable: bool
    requirement: str
    commit: str | None
    record: str | None


def find(package: pathlib.Path | None = None) -> Installation:
    """The installation that ``package`` is of, by default this one; a checkout where pip knows nothing of it."""
    package = pathlib.Path(vit_jax.__file__).resolve().parent if package is None else package.resolve()
    root = package.parent
    for found in importlib.metadata.distributions(name=NAME):
        origin, recorded = _origin(found), found.read_text("RECORD")
        url = str(origin.get("url", ""))
        folder = _folder(url) if "dir_info" in origin else None
        if folder and origin["dir_info"].get("editable") and package == folder.resolve() / NAME:
            return Installation(folder, True, NAME, commit(package), None)
        if recorded is None or package != pathlib.Path(str(found.locate_file(NAME))).resolve():
            continue
        vcs = origin.get("vcs_info", {})
        at = f" @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', '')}" if vcs else ""
        known = folder if folder and (folder / "pyproject.toml").is_file() else None
        return Installation(known, False, NAME + at, vcs.get("commit_id"), _digest(recorded))
    own = (root / "pyproject.toml").is_file()
    return Installation(root if own else None, False, NAME, commit(package), None)


@functools.cache
def provenance() -> Mapping[str, Any]:
    """Version, commit and record of the package: what a result or converted weights came about with."""
    found = find()
    return {"vit_jax": vit_jax.__version__, "commit": found.commit, "record": found.record}


def _origin(found: importlib.metadata.Distribution) -> Mapping[str, Any]:
    """What pip wrote of where the distribution came from, {} where it is from an index."""
    try:
        origin = jsonfile.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _folder(url: str) -> pathlib.Path | None:
    parts = urllib.parse.urlsplit(url)
    return pathlib.Path(urllib.request.url2pathname(parts.path)) if parts.scheme == "file" else None


def _digest(record: str) -> str:
    """Of the files of the package alone: pip's own notes, and compiled files, differ from place to place."""
    lines = sorted(line for line in record.split("\n") if line.startswith(f"{NAME}/") and ",sha256=" in line)
    return hashlib.sha256("\n".join(line.strip() for line in lines).encode()).hexdigest()


def commit(package: pathlib.Path) -> str | None:
    """The commit of the checkout that ``package`` lies in; None where it lies in none of this project's.

    git asks the settings of a repository for programs to run, and takes any repository above: of a package that is
    installed in a stranger's, it would run theirs, and tell their commit.
    """
    root = package.parent
    try:
        project = root / "pyproject.toml"
        if not (root / ".git").exists() or f'name = "{package.name}"' not in text.read(project):
            return None
        own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
            "GIT_CEILING_DIRECTORIES": str(root.parent)
        }
        options = [f"core.{key}" for key in ("fsmonitor=false", f"hooksPath={os.devnull}")]
        command = ["git", "-C", str(root), *(word for option in options for word in ("-c", option))]
        found = subprocess.run(
            [*command, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=own,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
