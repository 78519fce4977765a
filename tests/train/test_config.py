"""The tree of settings: defaults, and mistakes that only the tree can see."""

import pytest

from vit_jax import models
from vit_jax.config import Duration, parse, resumable_keys
from vit_jax.evals import Classify
from vit_jax.train.config import TrainConfig
from vit_jax.types import UserError


def test_defaults(tiny):
    c = parse(TrainConfig, {"model": "vit_ti16", "data": {"path": "digits"}, "augment": {"size": 224}})
    assert c.model == models.create("vit_ti16")
    assert c.duration == Duration(10, "epochs") and c.evaluators == (Classify(),)
    assert parse(TrainConfig, tiny()).model.depth == 2


def test_models_go_by_their_published_names_too(tiny):
    """Those of the original repository and of timm, as ``models.create`` takes them."""
    for alias in ("ViT-B/16", "vit_base_patch16_224"):
        assert parse(TrainConfig, {**tiny(), "model": alias}).model == models.create("vit_b16")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 0}, "batch_size=0 is not allowed; give a number from 1 to 1,048,576."),
        ({"accumulate": 0}, "accumulate=0 is not allowed"),
        ({"keep": 0}, "keep=0 is not allowed"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1 is not allowed"),
        ({"ema": 1.0}, "ema=1.0 is not allowed; give a number in (0, 1) such as 0.9999, or None."),
        ({"ema": 0}, "ema=0.0 is not allowed"),
        ({"data": {"path": "digits", "frame": {"mode": "patches"}}}, "squares another mode and augment.patch=None."),
        ({"init": "a", "resume_from": "b"}, "a whole run: take out one with --config.init=None or"),
    ],
)
def test_mistakes(tiny, change, text):
    with pytest.raises(UserError) as e:
        parse(TrainConfig, tiny(**change))
    assert text in str(e.value)


def test_keys_that_may_change_are_marked_where_they_are_declared(tiny):
    run = {
        "mesh", "log_every", "eval_every", "checkpoint_every", "keep", "best", "plots", "evaluators", "eval_batch_size",
        "loggers", "profile", "patience", "imports", "accept_changed_data", "data.workers", "data.prefetch",
        "data.max_pixels", "data.timeout",
    }  # fmt: skip
    assert {*resumable_keys(parse(TrainConfig, tiny()))} == run | {"model.scan", "model.remat"}
    coca = parse(TrainConfig, {**tiny(), "model": "coca_vit_b32"})
    towers = {f"model.{part}.{key}" for part in ("image_tower", "text_tower", "decoder") for key in ("scan", "remat")}
    assert {*resumable_keys(coca)} == run | towers
