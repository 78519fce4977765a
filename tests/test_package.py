"""What an installation holds: the recipes too, which work from any folder."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


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
