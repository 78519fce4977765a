"""One run on a folder of images, trained once a session through the command line, and its files."""

from __future__ import annotations

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import models
from vit_jax.checkpoint import Checkpoints
from vit_jax.cli import main
from vit_jax.data.text import TextCodec, to_meta
from vit_jax.data.tokenizer import open_tokenizer

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
    c = ConfigDict()
    c.model = dict(name="vit", patch=4, width=16, depth=1, heads=2, mlp_dim=32, pool="gap")
    c.data = dict(path="folder:{images}", canvas=8, holdout=8, workers=1)
    c.augment = dict(size=8, train=("flip",))
    c.optim = dict(lr=0.003)
    c.batch_size = 8
    c.duration = "3 steps"
    return c
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """``images``: the data, class per folder; ``config``: the configuration file; ``workdir``: the trained run."""

    images: pathlib.Path
    config: pathlib.Path
    workdir: pathlib.Path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny ViT after three steps."""
    root = tmp_path_factory.mktemp("cli")
    images, rng = root / "images", np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (images / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 128, (8, 8, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(images / name / f"{i}.png")
    config = root / "some.py"
    config.write_text(CONFIG.replace("{images}", str(images)))
    assert main(["train", "--config", str(config), "--workdir", str(root / "run")]) == 0
    return Run(images, config, root / "run")


@pytest.fixture(scope="session")
def coca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a tiny CoCa of random parameters, for images of 8 x 8 and bytes."""
    root = tmp_path_factory.mktemp("coca")
    tower = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    codec = TextCodec(open_tokenizer("bytes"), 10)
    fields = {
        "image_tower": {"name": "vit", "patch": 4, "num_classes": 0, **tower},
        "text_tower": {"vocab_size": 259, "length": 10, "end_id": 2, "pool": "cls", **tower},
        "decoder": {"depth": 1, "heads": 2, "mlp_dim": 32},
        "embed_dim": 16, "queries": 3, "pool_heads": 2,
    }  # fmt: skip
    model = models.create("coca", **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.inputs(8))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(scale=0.3, size=s.shape), s.dtype), nn.unbox(shapes["params"])
    )
    config = {
        "model": {"name": "coca", **fields},
        "data": {"path": "csv:/gone.csv", "canvas": 8, "text": {"tokenizer": "bytes", "length": 10}},
        "augment": {"size": 8},
        "objective": {"name": "coca"},
    }
    checkpoints = Checkpoints(root)
    meta = {"config": config, "class_names": [], "tokenizer": to_meta(codec)}
    checkpoints.save(1, {"params": params}, meta, {})
    checkpoints.close()
    return root
