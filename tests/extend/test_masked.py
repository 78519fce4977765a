"""A masked autoencoder: the loss counts unseen patches alone, masks are drawn anew, its encoder loads as a ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extend.masked.model import MAE
from tests.extend.masked.objective import Masked, patches
from vit_jax import metrics, models
from vit_jax.objectives import OBJECTIVES
from vit_jax.train import loop

VIT = dict(patch=2, width=16, depth=2, heads=2, mlp_dim=32, pool="gap")


def model():
    return MAE(vit=models.create("vit", **VIT, num_classes=0), dim=8)


@pytest.mark.thorough
def test_the_loss_is_of_unseen_patches(rng):
    image = jnp.asarray(rng.normal(size=(3, 8, 8, 3)), jnp.float32)
    params = jax.jit(model().init)(jax.random.key(0), image)["params"]
    apply = lambda p, *a, rngs, **k: model().apply({"params": p}, *a, rngs=rngs, **k)  # noqa: E731
    batch, rngs = {"image": image, "mask": jnp.ones(3, bool)}, {"mask": jax.random.key(1), "dropout": jax.random.key(2)}
    losses = jax.jit(lambda p: Masked(2).per_example(apply, p, batch, rngs, train=True)[0])(params)
    run = jax.jit(lambda p, key: apply(p, image, train=True, rngs={**rngs, "mask": key}, method="reconstruct"))
    pixels, unseen = jax.device_get(run(params, rngs["mask"]))
    assert unseen.sum(1).tolist() == [12] * 3  # of 16
    x = np.asarray(image, np.float64).reshape(3, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 12)
    np.testing.assert_array_equal(jax.jit(patches, static_argnums=1)(image, 2), x.astype(np.float32))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    want = [((pixels[i] - x[i]) ** 2).mean(-1)[unseen[i]].mean() for i in range(3)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    other = jax.device_get(run(params, jax.random.key(9)))[1]
    assert (other != unseen).any() and (other[0] != other[1]).any()
    hidden = jnp.where(jnp.asarray(unseen)[:, :, None], 7.0, patches(image, 2))  # what is not seen does not matter
    back = hidden.reshape(3, 4, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(image.shape)
    again = jax.jit(lambda p: apply(p, back, train=True, rngs=rngs, method="reconstruct"))(params)[0]
    np.testing.assert_allclose(again, pixels, atol=1e-5)


@pytest.mark.slow
def test_its_encoder_loads_as_a_vit(tiny, alone, tmp_path, monkeypatch, capsys):
    options = dict(model=model(), objective=Masked(2), evaluators=["knn(k=3)"], best="val/knn/accuracy", duration=8)
    with alone():
        run = loop.run(tiny(**options, eval_every=8, checkpoint_every=8, ema=None), tmp_path / "mae")
    losses = [row["train/loss"] for row in metrics.read(tmp_path / "mae") if "train/loss" in row]
    assert losses[-1] < losses[0]
    monkeypatch.setitem(models.NAMES, "mae", MAE)  # the rows that a method of the package would have
    monkeypatch.setitem(OBJECTIVES, "masked", Masked)
    with alone():
        raw = tiny(model=VIT | {"name": "vit"}, init=str(tmp_path / "mae"), duration=3)
        start = loop.run(raw, tmp_path / "tuned")
    said = capsys.readouterr().out
    assert "only its vit is used" in said and "head/kernel is new" in said
    encoder, params = run.setup.model.image_encoder(run.state.params)
    assert isinstance(encoder, models.ViT) and encoder == model().vit
    before, after = params["encoder"]["block_0"]["mlp"], start.state.params["encoder"]["block_0"]["mlp"]
    np.testing.assert_allclose(before["mlp_in"]["kernel"], after["mlp_in"]["kernel"], atol=2e-2)  # three steps on
