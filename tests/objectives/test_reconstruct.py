"""The sum of squares of all blocks, and what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models import ModelFn
from vit_jax.objectives import Classify, Reconstruct
from vit_jax.types import UserError

INFO = types.SimpleNamespace(num_classes=3, captions=0, class_names="abc")
MASK = np.array([True, True, False])


def test_it_is_the_mean_over_blocks_of_what_they_found():
    errors = {f"block_{i}": {"error": np.array([1, 3, 9], "float32") * np.float32(i + 1)} for i in range(2)}
    apply = lambda params, image, train, rngs, mutable: (None, {"reconstruction": errors})  # noqa: E731
    batch = {"image": None, "mask": MASK}
    loss, metrics = Reconstruct(weight=0.1)(apply, {}, batch, {}, train=True)
    np.testing.assert_allclose(loss, 0.1 * 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["error"].value(), 3, rtol=1e-6)


@pytest.mark.thorough
def test_predictors_alone_learn_and_evaluation_is_classification(rng):
    fields = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 12}
    model = Reconstruct().fit_model(models.create("vit", **fields, logit_bias="predicted(0.5, tokens=2)"), INFO)
    image = jnp.asarray(rng.standard_normal((3, 8, 8, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    batch = {"image": image, "label": jnp.asarray([0, 2, 1]), "mask": MASK}
    rngs = {"dropout": jax.random.key(1)}
    run = jax.jit(lambda p: Reconstruct().value_and_grad(ModelFn(model), p, batch, rngs))
    (loss, _), grads = run(params)
    assert np.isfinite(loss) and loss > 0
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(g) == ("logit_bias" in str(path)), path
    same = [
        jax.jit(lambda p, o=o: o(ModelFn(model), p, batch, rngs, train=False)[0]) for o in (Classify(), Reconstruct())
    ]
    assert same[0](params) == same[1](params)


def test_a_model_without_predictors_is_refused():
    with pytest.raises(UserError, match="this model has none; give a ViT"):
        Reconstruct().fit_model(models.create("vit_ti16"), INFO)
    fitted = Reconstruct().fit_model(models.create("vit_ti16", logit_bias="predicted"), INFO)
    assert fitted.num_classes == 3 and Reconstruct().output_activation == "softmax"
