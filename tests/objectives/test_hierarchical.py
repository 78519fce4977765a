"""The loss is the sum over levels, of labels that follow from the fine ones; the model is told what it needs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.objectives import Hierarchical
from vit_jax.types import UserError

COARSE = np.array([[0, 1], [1, 0], [0, 2]])
NAMES = ("ant", "bee", "cat")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "levels.csv"
    path.write_text("class,a,b\n" + "".join(f"{n},a{i},b{j}\n" for n, (i, j) in zip(NAMES, COARSE, strict=True)))
    return str(path)


def apply(params, image, *, train, rngs=None, mutable=()):
    """Logits are parts of the image's numbers, those of later blocks last."""
    fine, first, second = image[:, :3] * params, image[:, 3:5], image[:, 5:8]
    found = {"levels": {"encoder": {"block_10": {"logits": second}, "block_2": {"logits": first}}}}
    return (fine, found) if mutable else fine


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.first(1)
@pytest.mark.parametrize("mixed", [True, False])
def test_the_loss_is_the_sum_over_levels(rng, table, mixed):
    image = rng.normal(size=(6, 8))
    label = rng.integers(0, 3, 6)
    soft = np.eye(3)[label]
    if mixed:
        soft = 0.7 * soft + 0.3 * soft[::-1]
    mask = np.arange(6) != 4
    batch = {"image": image.astype(np.float32), "mask": mask}
    batch["label"] = soft.astype(np.float32) if mixed else label.astype(np.int32)
    o = Hierarchical(table, weights=(0.5, 2.0), label_smoothing=0.1)
    want = np.zeros(6)
    for z, target, weight in (
        (image[:, :3] * 1.5, soft, 1.0),
        (image[:, 3:5], soft @ np.eye(2)[COARSE[:, 0]], 0.5),
        (image[:, 5:8], soft @ np.eye(3)[COARSE[:, 1]], 2.0),
    ):
        want -= weight * ((0.9 * target + 0.1 / z.shape[1]) * log_softmax(z)).sum(1)
    (loss, metrics), _ = o.value_and_grad(apply, jnp.float32(1.5), batch, {"dropout": jax.random.key(0)})
    np.testing.assert_allclose(loss, want[mask].mean(), rtol=1e-5)
    hits = image[:, 3:5].argmax(1) == (soft @ np.eye(2)[COARSE[:, 0]]).argmax(1)
    np.testing.assert_allclose(metrics["level_1/accuracy"].value(), hits[mask].mean(), rtol=1e-6)
    plain, _ = o(apply, jnp.float32(1.5), batch, {}, train=False)
    fine = -(soft * log_softmax(image[:, :3] * 1.5)).sum(1)
    np.testing.assert_allclose(plain, fine[mask].mean(), rtol=1e-5)


def test_the_model_has_prompts_for_the_levels(table):
    info = types.SimpleNamespace(num_classes=3, captions=0, class_names=NAMES)
    fitted = Hierarchical(table).fit_model(models.create("vit_ti16", prompts=((4, 3), (2, 2))), info)
    assert fitted.num_classes == 3 and Hierarchical(table).output_activation == "softmax"
    with pytest.raises(UserError, match=r"have 2, 3 coarse classes, and the model's prompts are \(\); give a ViT"):
        Hierarchical(table).fit_model(models.create("vit_ti16"), info)
    with pytest.raises(UserError, match="are for 1 levels, and there are 2"):
        Hierarchical(table, weights=(1.0,)).fit_model(models.create("vit_ti16", prompts=((4, 3), (2, 2))), info)
    other = types.SimpleNamespace(num_classes=3, captions=0, class_names=("ant", "cat", "bee"))
    with pytest.raises(UserError, match="put the rows in the order of the classes"):
        Hierarchical(table).fit_model(models.create("vit_ti16"), other)
