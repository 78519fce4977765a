"""The contrastive objective: configuration, metrics, and the model it asks for."""

import types
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax import config, losses
from vit_jax.models import ImageTextModel
from vit_jax.objectives import OBJECTIVES, Contrast
from vit_jax.types import UsageError, UserError

FIELD = Annotated[Any, config.Choice(OBJECTIVES)]


class Text(nn.Module):
    vocab_size: int = 0
    length: int = 0
    end_id: int = 0
    pad_id: int = 0
    width: int = 3


class Model(ImageTextModel):
    text_tower: Text
    embed_dim: int = 4


def info(captions=1, encoder=True):
    tokenizer = types.SimpleNamespace(vocab_size=259, end_id=257, pad_id=258, start_id=256)
    encoder = types.SimpleNamespace(tokenizer=tokenizer, length=32) if encoder else None
    return types.SimpleNamespace(captions=captions, encoder=encoder)


def test_written_as_text():
    found = config.parse(FIELD, {"name": "contrast", "loss": "cloob(beta=4)", "form": "ring(128)"})
    assert found == Contrast(losses.Cloob(4.0), losses.Ring(128))
    assert config.parse(FIELD, "contrast") == Contrast(losses.Softmax(), losses.Dense())
    assert hash(found) != hash(Contrast())
    with pytest.raises(UsageError, match=r"unknown config.loss 'sigmoyd'; did you mean 'sigmoid'"):
        config.parse(FIELD, {"name": "contrast", "loss": "sigmoyd"})
    with pytest.raises(UserError, match="size=0 is not allowed"):
        config.parse(FIELD, {"name": "contrast", "form": "chunked(0)"})


@pytest.mark.parametrize("form", [losses.Dense(), losses.Chunked(3)], ids=str)
def test_metrics(form, towers):
    params, batch = towers.make(np.random.default_rng(5))
    out = towers.apply(params, batch["image"], batch["text"], train=False, rngs=None)
    z = np.asarray(out.image @ out.text.T, np.float64)[batch["mask"]][:, batch["mask"]]
    run = jax.jit(lambda p, b: Contrast(losses.Sigmoid(), form)(towers.silent, p, b, {}, train=False))
    loss, metrics = run(params, batch)
    own = np.arange(13)
    assert (z.argmax(1) == own).sum() != (z.argmax(0) == own).sum() > 0
    assert set(metrics) == {"loss", "image_to_text", "text_to_image", "scale", "bias"}
    np.testing.assert_allclose(metrics["image_to_text"].value(), (z.argmax(1) == own).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_image"].value(), (z.argmax(0) == own).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["scale"].value(), np.exp(1.2), rtol=1e-6)
    np.testing.assert_allclose(metrics["bias"].value(), -1, rtol=1e-6)
    z = np.exp(1.2) * z - 1
    want = np.log1p(np.exp(np.where(np.eye(13, dtype=bool), -z, z))).sum() / 13
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].value(), loss)


def test_only_losses_with_a_bias_report_it(towers, rng):
    assert "bias" not in Contrast()(towers.silent, *towers.make(rng), {}, train=False)[1]


def test_no_dropout_in_evaluation(towers, rng):
    params, batch = towers.make(rng)
    rngs = {"dropout": jax.random.key(0)}
    values = [
        Contrast()(towers.apply, params, batch, r, train=t)[0] for r, t in ((rngs, False), ({}, False), (rngs, True))
    ]
    assert values[0] == values[1] != values[2]


def test_fit_model():
    model = Contrast().fit_model(Model(Text(width=7)), info())
    assert model == Model(Text(vocab_size=259, length=32, end_id=257, pad_id=258, width=7))


def test_models_and_data_that_do_not_fit():
    with pytest.raises(UserError, match="Text has no text tower; take a model such as clip_vit_b32"):
        Contrast().fit_model(Text(), info())
    for data in (info(encoder=False), info(captions=0)):
        with pytest.raises(UserError, match=r"the data come without; set data\.text"):
            Contrast().fit_model(Model(Text()), data)
