"""What an installation holds: the recipes too, which work from any folder, and whatever is imported."""

import ast
import json
import os
import pathlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.thorough
def test_recipes_of_an_installation(tmp_path):
    """The files that ``pip install .`` would copy, with nothing of the checkout in reach."""
    pytest.importorskip("setuptools", minversion="77")
    lib, empty = tmp_path / "lib", tmp_path / "empty"
    empty.mkdir()
    build = ["setup.py", "-q", "egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", lib]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    there = {path.relative_to(lib / "vit_jax" / "configs") for path in (lib / "vit_jax" / "configs").iterdir()}
    assert there == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").glob("*.*")}
    assert {p.suffix for p in (lib / "vit_jax/data/tokenizer").glob("clip_merges.*")} == {".gz", ".LICENSE"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | {"PYTHONPATH": str(lib)}
    command = [sys.executable, "-m", "vit_jax", "config", "clip:digits", "--json", "-"]
    done = subprocess.run(command, cwd=empty, env=env, check=True, capture_output=True, text=True)
    tokenizer = json.loads(done.stdout)["data"]["text"]["tokenizer"]
    assert tokenizer == f"json:{lib / 'vit_jax' / 'configs' / 'digits_pairs.json'}"


ROOTS = {
    "orbax-checkpoint": "orbax", "pillow": "PIL", "scikit-learn": "sklearn", "open_clip_torch": "open_clip",
    "tensorflow-datasets": "tensorflow_datasets", "pillow-heif": "pillow_heif", "PyYAML": "yaml",
}  # fmt: skip
"""Package -> what is imported of it, where that has another name."""
WITH = {"scipy": "jax", "aiohttp": "fsspec", "libtpu": "jax"}
"""What comes with another package."""


def imports() -> Iterator[tuple[str, bool, str]]:
    """The root of everything that a module imports, whether that is done when the module is, and the module."""
    for path in (ROOT / "vit_jax").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                yield from ((name.partition(".")[0], id(node) not in inside, path.name) for name in names)


def test_what_is_imported_is_declared():
    """At once only what the package itself brings; within functions also what an extra does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = [r for name, rows in extras.items() if name not in ("test", "dev", "docs", "notebooks") for r in rows]
    core, more = ({Requirement(r).name for r in rows} for rows in (project["dependencies"], used))
    core, more = ({ROOTS.get(name, name) for name in names} for names in (core, more))
    found = [row for row in imports() if row[0] not in sys.stdlib_module_names | {"vit_jax"}]
    assert {row for row in found if row[1] and WITH.get(row[0], row[0]) not in core} == set()
    assert {row for row in found if WITH.get(row[0], row[0]) not in core | more} == set()
    assert not {"pyarrow", "tensorflow_datasets", "torch"} & core
