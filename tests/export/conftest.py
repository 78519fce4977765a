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
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.models import create
from vit_jax.models.base import split_variables
from vit_jax.predict import ImageText, Predictor
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
        other = changes.get("model", {})
        usual = {**RAW, "model": {} if "widths" in other else {"patch": 4, "width": 32}} if "name" in other else RAW
        raw = {key: {**usual.get(key, {}), **changes.get(key, {})} for key in {**usual, **changes}}
        config = parse(TrainConfig, raw)
        model = config.objective.fit_model(config.model, Info(names, 0))
        image = jnp.zeros((1, config.augment.size, config.augment.size, 3))
        params, others = _drawn(model, image)
        found = Pretrained(
            model, params, Preprocess.of(config.augment, config.data.canvas), names,
            config.objective.output_activation or "softmax", source="run/checkpoints/7", provenance={"commit": "abc"},
            variables=others,
        )  # fmt: skip
        return Predictor(found)

    return make


def _drawn(model: nn.Module, *inputs: Any) -> Any:
    """Random parameters, and other variables above zero, as variances are."""
    params, others = split_variables(nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)))
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.5), s.dtype)  # noqa: E731
    return jax.tree.map(draw, params), jax.tree.map(lambda s: 0.5 + jnp.abs(draw(s)), others)


TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="session")
def image_text() -> Callable[..., ImageText]:
    """``image_text("coca", text={"pool": "cls"}, queries=2)``: as ``predictor``, with a tokenizer of bytes."""

    def make(name: str = "two_tower", text: Any = None, image: Any = None, tokenizer: Any = "bytes", **fields: Any):
        codec = TextCodec(open_tokenizer(tokenizer), 12) if tokenizer else None
        towers = {
            "image_tower": {"name": "vit", "patch": 4, **TOWER, **(image or {})},
            "text_tower": {**TOWER, "vocab_size": 259, "length": 12, "end_id": 2, **(text or {})},
        }
        model = create(name, **towers, embed_dim=16, **fields)
        params, _ = _drawn(model, *(jnp.zeros(x.shape, x.dtype) for x in model.inputs(8)))
        params = {**params, "logit_scale": jnp.float32(1.5)}
        found = Pretrained(model, params, Preprocess(8, 0.8), encoder=codec, output_activation=model.output_activation)
        return ImageText(found)

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
