"""Patches against Flax's convolution, positions against formulas, resizing against PIL-free interpolation."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.embed import PatchEmbed, Positions, resize_positions, sincos_positions
from vit_jax.types import UserError


@pytest.mark.parametrize(("size", "channels", "patch"), [((6, 9), 3, 3), ((4, 4), 1, 1), ((8, 4), 5, 4)])
def test_patches_equal_a_convolution(rng, size, channels, patch):
    x = jnp.asarray(rng.standard_normal((2, *size, channels)), jnp.float32)
    boxed = PatchEmbed(patch, 6).init(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == (None, None, "patch", "embed")
    params = {**nn.meta.unbox(boxed), "bias": jnp.arange(6.0)}
    conv = nn.Conv(6, (patch, patch), (patch, patch), padding="VALID")
    got = PatchEmbed(patch, 6).apply({"params": params}, x)
    np.testing.assert_allclose(got, conv.apply({"params": params}, x), atol=1e-5)


@pytest.mark.parametrize("size", [(10, 8), (8, 3)])
def test_an_indivisible_image_is_a_sentence_at_trace_time(size):
    with pytest.raises(UserError, match=f"image size {size[0]}x{size[1]} is not divisible by the patch size 4; use"):
        jax.eval_shape(PatchEmbed(4, 6).init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_positions_add_and_refuse_another_length(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.bfloat16)
    boxed = Positions().init(jax.random.key(0), x)
    assert boxed["params"]["embedding"].names == (None, "tokens", "embed")
    table = jnp.asarray(rng.standard_normal((1, 5, 4)), jnp.bfloat16)
    got = Positions().apply({"params": {"embedding": table.astype(jnp.float32)}}, x)
    np.testing.assert_array_equal(got, x + jnp.broadcast_to(table, x.shape))
    for params in (boxed, nn.meta.unbox(boxed)):
        with pytest.raises(UserError, match="for 5 tokens but the image gives 3; keep the image size"):
            Positions().apply(params, x[:, :3])


def test_sincos_is_separable_and_needs_a_multiple_of_four():
    table = sincos_positions(3, 5, 8).reshape(3, 5, 8)
    omega = np.array([1.0, 1e-4])
    for y in range(3):
        for x in range(5):
            want = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
            np.testing.assert_allclose(table[y, x], want, atol=1e-6)
    with pytest.raises(UserError, match="divisible by 4, got 6"):
        sincos_positions(2, 2, 6)


def test_resize_keeps_prefix_and_interpolates_the_grid():
    ramp = jnp.arange(4.0)[None, :, None] * jnp.ones((4, 1, 2))  # columns 0 1 2 3
    positions = jnp.concatenate([jnp.full((1, 1, 2), 7.0), ramp.reshape(1, 16, 2)], axis=1)
    same = resize_positions(positions, (4, 4), (4, 4), 1)
    np.testing.assert_allclose(same, positions, atol=1e-6)
    wide = resize_positions(positions, (4, 4), (4, 8), 1)
    assert wide.shape == (1, 33, 2)
    np.testing.assert_array_equal(wide[:, 0], positions[:, 0])
    centres = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(wide[0, 1:].reshape(4, 8, 2)[2, :, 1], centres, atol=1e-6)
    with pytest.raises(UserError, match="17 position embeddings are not 0 and a grid of 4x4"):
        resize_positions(positions, (4, 4), (8, 8), 0)
