"""What bash completes with the script, and that the others' are made."""

import pathlib
import shutil
import subprocess

import pytest

from vit_jax.cli import main

TYPED = """
source {script}
try() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=(); _shtab_vit_jax; echo "${{COMPREPLY[*]}}"; }}
try vit_jax tr
try vit_jax train --config.optim.l
try vit_jax train --config di
try vit_jax train --config mi
try vit_jax models vit_t
try vit_jax bench forward --model vit_b
try vit_jax convert --to ti
try vit_jax convert mi
try vit_jax evaluate --workd
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.py").touch()
    typed = TYPED.format(script=tmp_path / "script")
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "train",
        "--config.optim.lr --config.optim.lr_mult --config.optim.layer_decay",
        "digits",
        "mine.py",
        "vit_ti16",
        "vit_b8 vit_b14 vit_b16 vit_b32",
        "timm",
        "mine.py",
        "--workdir",
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "vit_jax" in out and "config.optim.lr" in out and str(pathlib.Path.cwd()) not in out
