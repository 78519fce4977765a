"""What other machines are sent."""

import importlib.metadata

import pytest

import vit_jax
from vit_jax.launch import staging
from vit_jax.types import UserError


def test_files_that_a_command_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    for name in ("my/config.py", "parts.py", "more.py", "plan.json", "photo.png"):
        (tmp_path / name).write_text("")
    words = ["train", "--config", "./my/config.py:big", "--config.imports=parts.py,more.py", "photo.png", "absent.py"]
    assert staging.own_files([*words, "--x=json:plan.json", "parts.py"]) == [
        "my/config.py", "parts.py", "more.py", "plan.json",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path / "my")
    for name in (str(tmp_path / "parts.py"), "../parts.py"):
        with pytest.raises(UserError, match="is a file of this machine; copy it into this folder"):
            staging.own_files(["--config", name])


def test_requirements_of_sources_and_of_an_installation(monkeypatch, tmp_path):
    lines = staging.requirements(("tpu", "remote"))
    assert {"jax[tpu]", "gcsfs"} <= {line.split(">")[0] for line in lines} and "jax[cuda13]" not in lines
    monkeypatch.setattr(vit_jax, "__file__", str(tmp_path / "vit_jax" / "__init__.py"))
    installed = [
        "jax>=1", "tomli>=2; python_version < '3.11'", 'jax[tpu]; extra == "tpu"', 'torch; extra == "torch"',
        'x>=3; sys_platform == "linux" and extra == "remote"',
    ]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", {"vit_jax": installed}.get)
    assert staging.requirements(("tpu", "remote")) == [
        "jax>=1", "tomli>=2; python_version < '3.11'", "jax[tpu]", 'x>=3; sys_platform == "linux"',
    ]  # fmt: skip


def test_a_folder_is_filled(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "vit_jax"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "lib" / "configs").mkdir()
    (tmp_path / "lib" / "configs" / "digits.py").write_text("")
    (tmp_path / "lib" / "pyproject.toml").write_text('[project]\ndependencies = ["jax"]\n')
    monkeypatch.setattr(vit_jax, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "config.py").write_text("mine")
    (tmp_path / "there").mkdir()
    staging.fill(tmp_path / "there", (), ["my/config.py"])
    found = sorted(str(p.relative_to(tmp_path / "there")) for p in (tmp_path / "there").rglob("*") if p.is_file())
    assert found == ["my/config.py", "requirements.txt", "vit_jax/__init__.py", "vit_jax/configs/digits.py"]
    assert (tmp_path / "there" / "requirements.txt").read_text() == "jax\n"
