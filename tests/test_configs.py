"""Every file in configs/, with every argument it documents, loads and, made small, traces a step."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from vit_jax import config
from vit_jax.models import ImageModel, Upsampler, describe
from vit_jax.optim import masks
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
SMALL = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "token_dim": 16, "stem": (1, 1)}
SIZE, BATCH = 32, 16


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


CASES = [(path, arg) for path in FILES for arg in module(path).ARGS]


def small(model, fields):
    """Fields of an image model that make it tiny."""
    here = {k: v for k, v in SMALL.items() if getattr(model, k, None) is not None}
    stride = 1 if getattr(model, "stem", None) is not None else min(model.patch, SIZE // 2)
    return {**fields, **here, "patch": stride}


def shrunk_model(raw):
    """The same kind of model, tiny."""
    model = config.parse(config.hints(TrainConfig)["model"], raw)
    fields = raw if isinstance(raw, dict) else {"name": raw}
    if isinstance(model, Upsampler):
        tower = {**small(model.image_tower, fields["image_tower"]), "patch": SIZE // 4}
        return {**fields, "image_tower": tower, "side": SIZE // 2}
    if isinstance(model, ImageModel):
        return small(model, fields)
    text = {k: v for k, v in SMALL.items() if hasattr(model.text_tower, k)}
    out = {
        **fields,
        "image_tower": small(model.image_tower, fields.get("image_tower", {})),
        "text_tower": {**fields.get("text_tower", {}), **text},
        "embed_dim": SMALL["width"],
    }
    if hasattr(model, "decoder"):
        out |= {"decoder": {"depth": 1, "heads": 2, "mlp_dim": 32}, "queries": 3, "pool_heads": 2}
    return out


def shrink(raw):
    """The same choices on a tiny model and made-up images."""
    text = {"tokenizer": "bytes", "length": 24, "templates": "photo"} if raw["data"].get("text") else None
    optim = {**raw.get("optim", {})}
    if isinstance(optim.get("sam"), str):
        optim["sam"] = re.sub(r"m=\d+", "m=4", optim["sam"])
    return {
        **raw,
        "model": shrunk_model(raw["model"]),
        "data": {
            **raw["data"],
            "path": "fake:64x32x4",
            "val": None,
            "canvas": SIZE,
            "holdout": 16,
            "workers": 1,
            "text": text,
        },
        "augment": {**raw["augment"], "size": SIZE},
        "optim": optim,
        "mesh": {"replica": 1, "fsdp": 1, "tensor": 1},
        "batch_size": BATCH,
        "duration": 20_000,
    }


def test_they_are_found():
    assert {"digits", "finetune", "finetune_clip", "clip", "siglip", "lit", "cloob", "coca", "lift"} <= {
        p.stem for p in FILES
    }


@pytest.mark.first(4)
@pytest.mark.parametrize(("path", "arg"), CASES, ids=lambda x: getattr(x, "stem", x) or "plain")
def test_a_step_is_traced(path, arg):
    raw = config.load(f"{path}:{arg}" if arg else str(path), [("data.path", "digits")])
    config.parse(TrainConfig, raw)  # as it is
    setup = build(config.parse(TrainConfig, shrink(raw)), jax.devices()[:1])
    batches = setup.train_batches(0)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in next(batches).items()}
    batches.close()
    with jax.set_mesh(setup.mesh):
        state, metrics = jax.eval_shape(setup.step, setup.shapes, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), setup.shapes)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == np.float32


def test_clip_decays_all_but_gains_and_biases():
    """As Radford et al. 2021 and open_clip, which leaves out what has fewer than two axes: its class token has one."""
    clip = next(module(path) for path in FILES if path.stem == "clip")
    raw = clip.get_config("clip_vit_b32").to_dict()
    tiny = config.parse(config.hints(TrainConfig)["model"], shrunk_model(raw["model"]))
    shapes = {path: np.zeros(shape) for path, shape in describe.shapes(tiny, SIZE).items()}
    factors = masks.first_match(raw["optim"]["decay_rules"], shapes, None)
    kept = {path for path, factor in factors.items() if factor == 0}
    names = ("bias", "scale")
    assert kept == {p for p in shapes if p.rsplit("/", 1)[-1] in names or p in ("image_tower/cls", "logit_scale")}
    assert {"text_tower/token/embedding", "image_tower/position/embedding"} <= shapes.keys() - kept
    assert raw["augment"].get("crop", 1.0) == 1.0


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_header_gives_a_command_that_works(path):
    text, found = module(path).__doc__, module(path)
    commands = re.findall(rf"--config {path.stem}(?::(\S+))?(?=\s)", text)
    assert commands and "vit_jax train" in text and "--workdir" in text
    assert set(commands) <= {*found.ARGS, ""}, "ARGS lists the arguments that the header shows"
