"""CoCa's loss from its two equations; its accumulation is in test_pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import losses
from vit_jax.objectives import CoCa
from vit_jax.types import UserError


def caption_loss(towers, params, batch):
    """Equation 3 as a loop: the mean over the valid captions' real tokens but the first."""
    out = towers.apply(params, batch["image"], batch["text"], train=False, rngs=None)
    hidden, vocabulary = (np.asarray(x, np.float64) for x in (out.hidden, params["vocabulary"]))
    found = []
    for i in np.flatnonzero(batch["mask"]):
        for t in range(towers.length - 1):
            z = hidden[i, t] @ vocabulary
            found.append(np.log(np.exp(z).sum()) - z[batch["text"][i, t + 1]])
            if batch["text"][i, t + 1] == towers.end:  # the end token is to be learned, padding is not
                break
    return np.mean(found), len(found), out


def test_weighted_sum(towers, rng):
    params, batch = towers.make(rng)
    run = jax.jit(lambda p, b: CoCa(contrastive_weight=0.5, caption_weight=3.0)(towers.apply, p, b, {}, train=False))
    loss, metrics = run(params, batch)
    caption, tokens, out = caption_loss(towers, params, batch)
    contrast = jnp.mean(losses.Softmax()(*out[:4], batch["mask"])[batch["mask"]])
    np.testing.assert_allclose(metrics["caption"].value(), caption, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive"].value(), contrast, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * contrast + 3 * caption, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].value(), loss, rtol=1e-6)
    assert metrics["caption"].count == tokens and metrics["loss"].count == metrics["contrastive"].count == 13


def test_defaults_are_the_papers():
    assert dict(CoCa().weights) == {"contrastive": 1.0, "caption": 2.0}


def test_options_are_for_training(towers, rng):
    params, batch = towers.make(rng)
    run = lambda o, train: o(towers.apply, params, batch, {}, train=train)[1]["caption"].value()  # noqa: E731
    options = CoCa(label_smoothing=0.2, z_loss=0.1)
    np.testing.assert_array_equal(run(options, False), run(CoCa(), False))
    assert run(options, True) > run(CoCa(), True) + 0.01


def test_a_model_without_decoder(towers, rng):
    with pytest.raises(UserError, match="objective 'coca' needs a model that writes captions"):
        CoCa()(towers.silent, *towers.make(rng), {}, train=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("label_smoothing", 1.0), ("z_loss", -1.0), ("caption_weight", -1.0), ("contrastive_weight", -2.0)],
)
def test_fields_out_of_range(field, value):
    with pytest.raises(UserError, match=rf"{field}={value} is "):
        CoCa(**{field: value})
