"""Which checkpoints there are."""

import shutil

import pytest

from tests.checkpoint.conftest import items, like, save
from vit_jax import checkpoint
from vit_jax.checkpoint import restore
from vit_jax.types import UserError


def test_an_unfinished_save_is_no_checkpoint(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "8", folder / "12.orbax-checkpoint-tmp-3")
    shutil.rmtree(folder / "12.orbax-checkpoint-tmp-3" / "meta")
    assert [p.name for p in checkpoint.find(run)] == ["8", "4"]
    assert restore(run, like(items(8)))[0] == 8
    save(run, {12: {}})
    assert [p.name for p in folder.iterdir() if "tmp" in p.name] == []
    assert restore(run, like(items(12)))[0] == 12


def test_nothing_there(tmp_path):
    assert restore(tmp_path, like(items(8))) is None
    with pytest.raises(UserError, match=f"no checkpoint in '{tmp_path}'; train there first"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="no such folder; give a workdir or WORKDIR/checkpoints/STEP"):
        checkpoint.find(tmp_path / "no")
