"""A tiny classifier with random parameters, as :class:`Predictor` loads it, and canvases to show it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import parse
from vit_jax.convert import Pretrained
from vit_jax.convert.preprocess import Preprocess
from vit_jax.data.sources.base import Info
from vit_jax.predict import Predictor
from vit_jax.train.config import TrainConfig

NAMES = ("ant", "bee", "cäsar", "dog", "elk", "fox", "gnu")
RAW = {
    "model": {"name": "vit", "patch": 4, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 48},
    "data": {"path": "folder:/gone", "canvas": 10},
    "augment": {"size": 8, "norm": "imagenet", "crop": 0.9, "interpolation": "bicubic"},
}


@pytest.fixture(scope="session")
def predictor() -> Callable[..., Predictor]:
    """``predictor(names, model={"pool": "gap"}, ...)``: random parameters, large enough to tell classes apart."""

    def make(names: tuple[str, ...] = NAMES, **changes: Any) -> Predictor:
        raw = {key: {**RAW.get(key, {}), **changes.get(key, {})} for key in {**RAW, **changes}}
        config = parse(TrainConfig, raw)
        model = config.objective.fit_model(config.model, Info(names, 0))
        image = jnp.zeros((1, config.augment.size, config.augment.size, 3))
        shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.5), s.dtype), shapes)
        found = Pretrained(
            model, params, Preprocess.of(config.augment, config.data.canvas), names,
            config.objective.output_activation or "softmax", source="run/checkpoints/7", provenance={"commit": "abc"},
        )  # fmt: skip
        return Predictor(found)

    return make


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``alone(folder, script, "vit_jax", ...)``: runs a script inside a folder where those packages are not."""

    def run(folder: pathlib.Path, script: str, *packages: str) -> None:
        with monkeypatch.context() as m:
            m.chdir(folder)
            for name in [*packages, *(n for n in sys.modules if n.split(".")[0] in packages)]:
                m.setitem(sys.modules, name, None)
            exec(compile(script, "usage", "exec"), {})

    return run


@pytest.fixture(scope="session")
def canvases() -> np.ndarray:
    """uint8[3,10,10,3]."""
    return np.random.default_rng(1).integers(0, 256, (3, 10, 10, 3), np.uint8)
