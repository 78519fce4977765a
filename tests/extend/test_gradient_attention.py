"""An explanation that differentiates by the attention which the model uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extend.gradient_attention.explain import attention_and_gradient, relevance
from vit_jax import models


def setting(rng):
    model = models.create("vit", patch=4, width=16, depth=2, heads=2, mlp_dim=16, num_classes=3)
    image = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    params["head"]["kernel"] = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
    return model, params, image, jnp.asarray([2, 0])


@pytest.mark.thorough
def test_the_gradient_is_that_of_a_nudge(rng):
    model, params, image, target = setting(rng)
    attention, gradient = jax.jit(lambda p: attention_and_gradient(model, p, image, target))(params)
    assert len(attention) == len(gradient) == 2 and attention[0].shape == (2, 2, 5, 5)
    np.testing.assert_allclose(attention[1].sum(-1), 1, atol=1e-5)

    @jax.jit
    def logit(nudge, at):
        shape = (2, 2, 5, 5)
        tree = {"encoder": {f"block_{i}": {"attention": {"attention": jnp.zeros(shape)}} for i in range(2)}}
        tree["encoder"]["block_0"]["attention"]["attention"] = (
            jnp.zeros(shape).at[at[0], at[1], at[2], at[3]].set(nudge)
        )
        out = model.apply({"params": params, "perturbations": tree}, image)
        return jnp.take_along_axis(out, target[:, None], 1).sum()

    for at in [(0, 0, 0, 3), (1, 1, 4, 0), (0, 1, 2, 2)]:
        slope = (logit(1e-2, np.array(at)) - logit(-1e-2, np.array(at))) / 2e-2
        np.testing.assert_allclose(gradient[0][at], slope, rtol=2e-2, atol=1e-3)


@pytest.mark.thorough
def test_relevance_of_tokens(rng):
    model, params, image, target = setting(rng)
    found = jax.jit(lambda p: relevance(model, p, image, target))(params)
    assert found.shape == (2, 5) and (np.asarray(found) >= 0).all() and (np.asarray(found[:, 0]) >= 1).all()
    other = jax.jit(lambda p: relevance(model, p, image, jnp.asarray([1, 1])))(params)
    assert np.abs(np.asarray(found - other)).max() > 1e-6
