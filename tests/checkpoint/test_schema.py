"""Versions of checkpoints."""

import numpy as np
import pytest

from vit_jax import checkpoint
from vit_jax.checkpoint import Checkpoints, NewerSchema, load_params, restore
from vit_jax.checkpoint import schema as versions


def test_a_newer_schema_is_left_alone(tmp_path, monkeypatch):
    """It is not taken for damaged: nothing is moved aside, and no older checkpoint is taken in its place."""
    params = {"w": np.ones(3, np.float32)}
    for step, schema in ((1, checkpoint.SCHEMA), (2, checkpoint.SCHEMA + 1)):
        monkeypatch.setattr(versions, "SCHEMA", schema)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, {"params": params}, {"class_names": []}, {})
        checkpoints.close()
    monkeypatch.undo()
    for read in (lambda: load_params(tmp_path), lambda: restore(tmp_path, {"params": params})):
        with pytest.raises(NewerSchema, match=r"is of schema 4, and this version of vit_jax reads up to 3; upgrade"):
            read()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()) == ["1", "2"]
