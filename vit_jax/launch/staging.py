"""What other machines need of this one: the package, what it requires, and the user's own configuration files."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import vit_jax
from vit_jax.io import atomic
from vit_jax.types import UserError

FILE = re.compile(r"[^\s=:,;'\"()\[\]]+\.(?:py|json)\b")
"""Names of configuration files and of modules within the words of a command."""


def own_files(words: Sequence[str]) -> list[str]:
    """Paths of the user's files that a command names: they go along, and stay where they are from the folder's view.

    Raises:
      UserError: one lies elsewhere, where other machines would not find it.
    """
    found = dict.fromkeys(name for word in words for name in FILE.findall(word) if os.path.isfile(name))
    for name in found:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise UserError(
                f"{name!r} is a file of this machine; copy it into this folder or start from one that holds it, and "
                "give its path from there: the file goes along, and is found by the same path."
            )
    return [os.path.normpath(name) for name in found]


def requirements(extras: Sequence[str]) -> list[str]:
    """What the package requires, with ``extras`` of it: from its sources where it runs from them, else as installed."""
    project = Path(vit_jax.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        with open(project, "rb") as file:
            table = tomllib.load(file)["project"]
        return [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]
    lines = []
    for line in importlib.metadata.requires("vit_jax") or []:
        what, _, when = (part.strip() for part in line.partition(";"))
        wanted = re.search(r"extra == ['\"]([^'\"]+)", when)
        if wanted is None:
            lines.append(line)
        elif wanted[1] in extras:
            rest = re.sub(r"\s*(and\s+)?extra == ['\"][^'\"]+['\"]", "", when).strip("() ")
            lines.append(f"{what}; {rest}" if rest else what)
    return lines


def fill(folder: Path, extras: Sequence[str], files: Sequence[str]) -> None:
    """Writes ``vit_jax/``, ``requirements.txt`` and ``files`` below an empty folder."""
    package = Path(vit_jax.__file__).parent
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, folder / "vit_jax", ignore=skip, dirs_exist_ok=True)
    if (recipes := package.parent / "configs").is_dir() and not (package / "configs").is_dir():
        shutil.copytree(recipes, folder / "vit_jax" / "configs", ignore=skip, dirs_exist_ok=True)
    atomic.write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in requirements(extras)))
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)
