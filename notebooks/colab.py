"""What pip has to install in Colab so that its own jax and numpy stay as they are: requirements on standard output.

Where they are older than vit_jax needs they are replaced, and a sentence says what to do then.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import tomllib
from collections.abc import Mapping

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ("jax", "numpy")
"""Whose versions fit drivers and each other there; of jax also what begins with its name, jaxlib and the plugins."""


def requirements(needed: list[str], installed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What to install, and a sentence for each package of :data:`KEPT` that is too old.

    Args:
      needed: requirements of this project.
      installed: name -> version.
    """
    wanted = {r.name: r for r in map(Requirement, needed)}
    old = [name for name in KEPT if name in installed and Version(installed[name]) not in wanted[name].specifier]
    pins = [
        f"{name}=={version}"
        for name, version in sorted(installed.items())
        if any(name == kept or (kept == "jax" and name.startswith("jax")) for kept in KEPT if kept not in old)
    ]
    plugin = next((name for name in ("cuda13", "cuda12") if "jax" in old and f"jax-{name}-plugin" in installed), None)
    more = [f"jax[{plugin}]"] if plugin else []
    sentences = [
        f"{name} {installed[name]} is older than vit_jax needs ({name}{wanted[name].specifier}): it is replaced now. "
        "Then choose Runtime > Restart session, and go on with the next cell."
        for name in old
    ]
    return ["..", *more, *pins], sentences


def main() -> None:
    """Prints the requirements, for a pip that runs in this folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    lines, sentences = requirements(project["dependencies"], there)
    print(*lines, sep="\n")
    print(*sentences, sep="\n", file=sys.stderr, end="\n" if sentences else "")


if __name__ == "__main__":
    main()
