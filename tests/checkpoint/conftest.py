"""Small checkpoints, and what breaks them."""

import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.checkpoint import Checkpoints, restore

META = {"config": {"seed": 1, "names": ["ä", None]}, "class_names": ["a", "b"], "provenance": {}}


def tree(seed=0):
    """Every type a state holds: float32, bfloat16, bool, integers, scalars, odd shapes."""
    r = np.random.default_rng(seed)
    host = {
        "block_0": {"kernel": r.normal(size=(16, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
        "head": {"mu": r.normal(size=(7, 3)).astype(ml_dtypes.bfloat16), "finite": r.random(5) > 0.5},
        "count": np.int32(seed),
        "norm": np.float32(0.1),
    }
    return jax.tree.map(jnp.asarray, host)


def items(step):
    return {"params": tree(step), "opt_state": {"mu/0": tree(step + 100)["head"]["mu"]}}


def like(values, sharding=None):
    one = sharding or NamedSharding(jax.sharding.Mesh(jax.devices()[:1], "x"), P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), values)


def restored(workdir, step):
    """What :func:`restore` finds, as (step, items), laid out like those of ``step``."""
    found, values = restore(workdir, like(items(step)))
    return found, {k: v for k, v in values.items() if k != "meta"}


def save(workdir, metrics, **options):
    """One checkpoint for each (step, metrics)."""
    checkpoints = Checkpoints(workdir, **options)
    for step, values in metrics.items():
        checkpoints.save(step, items(step), META, values)
    checkpoints.close()


def names(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints 4 and 8; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    save(folder, {4: {}, 8: {}})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    file = largest(folder / "params")
    os.truncate(file, file.stat().st_size // 2)
