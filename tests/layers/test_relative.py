"""Relative positions against a sum over pairs, with and without a class token, and grids that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.relative import Relative, RelativeBias
from vit_jax.layers.terms import LogitBiasSpec
from vit_jax.types import UserError


@pytest.mark.parametrize("cls", [0, 1])
def test_equals_a_loop_over_pairs(rng, cls):
    """Rows of BEiT's table: distances row by row, then from the class token, to it, and its own."""
    h, w, heads = 2, 3, 4
    table = rng.standard_normal(((2 * h - 1) * (2 * w - 1) + 3, heads)).astype(np.float32)
    x = jnp.zeros((2, cls + h * w, heads, 2))
    got = RelativeBias(h, w).apply({"params": {"table": jnp.asarray(table)}}, x, x)
    assert got.shape == (1, heads, cls + h * w, cls + h * w)
    for n, m in np.ndindex(*got.shape[2:]):
        i, j = n - cls, m - cls
        if i < 0 or j < 0:
            row = len(table) - (1 if i == j else 3 if i < 0 else 2)
        else:
            down, right = i // w - j // w, i % w - j % w
            row = (down + h - 1) * (2 * w - 1) + right + w - 1
        np.testing.assert_array_equal(got[0, :, n, m], table[row])


@pytest.mark.thorough
def test_a_vit_learns_them(rng):
    fields = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 8, "num_classes": 3, "positions": "none"}
    model = models.create("vit", **fields, logit_bias="relative(2)")
    image = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    loss = lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, image, method="embed_image")))  # noqa: E731
    grad = jax.jit(jax.grad(loss))(params)["encoder"]["block_0"]["attention"]["logit_bias"]["table"].unbox()
    assert grad.shape == (12, 2) and (np.abs(grad).max(1) > 0).all()  # every distance occurs
    role = model.roles(params)["encoder"]["block_1"]["attention"]["logit_bias"]["table"]
    assert "token" in str(role)  # decays as positions do, not as maps
    with pytest.raises(UserError, match=r"relative positions of 2x2 patches met 7 tokens; keep the image size"):
        model.apply({"params": params}, jnp.zeros((1, 8, 12, 3)))


def test_of_a_configuration():
    assert config.parse(LogitBiasSpec, "relative(14)", "x") == Relative(14)
    assert config.unparse(LogitBiasSpec, Relative(3, 4)) == {"name": "relative", "height": 3, "width": 4}
