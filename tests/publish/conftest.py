"""Models of random parameters in a folder like that of a run, and a hub to publish them on."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hub_server import TOKEN, serving
from vit_jax import models
from vit_jax.checkpoint import Checkpoints
from vit_jax.config import parse, record
from vit_jax.train.config import TrainConfig

METRICS = {"val/accuracy": 0.75, "val/loss": 0.5, "val/examples": 8.0, "val/odd": float("nan")}


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a classifier, evaluated at step 7, whose configuration and notes name many a place."""
    workdir = tmp_path_factory.mktemp("secret_home") / "ann" / "my run"
    raw = {
        "model": {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32},
        "data": {
            "path": f"folder:{workdir}/pets",
            "val": f"mix:1*folder:{workdir}/a+2*csv:{workdir}/b.csv",
            "canvas": 8,
        },
        "augment": {"size": 8, "train": ("flip",)},
        "init": "vit_b16.augreg_in21k",
        "loggers": ("tensorboard", "wandb(entity='secret_team')"),
    }
    config = json.loads(json.dumps(record(parse(TrainConfig, raw)), default=record))
    model = models.create("vit", **{k: v for k, v in raw["model"].items() if k != "name"}, num_classes=3)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.5), s.dtype), shapes)
    provenance = {"vit_jax": "0.2.0", "commit": "abc-dirty", "jax": "0.10", "command": ["vit_jax", f"{workdir}/x"]}
    provenance["assumed"] = {"heads": f"2 heads, said nowhere in {workdir}/config.json"}
    writer = Checkpoints(workdir)
    meta = {"config": config, "class_names": ["ant | *x*", "bee", "cät"], "provenance": provenance}
    writer.save(7, {"params": params}, meta, METRICS)
    writer.close()
    return workdir


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and the token of one who may write there."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with serving(tmp_path / "home", monkeypatch) as found:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found
