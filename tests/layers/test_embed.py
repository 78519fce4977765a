"""Patches against Flax's convolution, positions against formulas, resizing against torch, timm and SciPy."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.layers.embed import (
    RESIZES,
    GridPositions,
    PatchEmbed,
    PositionEmbedding,
    TokenEmbed,
    resize_matrix,
    resize_patches,
    resize_positions,
    sincos_positions,
)
from vit_jax.types import Patches, UserError


@pytest.mark.parametrize(("size", "channels", "patch"), [((6, 9), 3, 3), ((4, 4), 1, 1), ((8, 4), 5, 4)])
def test_patches_equal_a_convolution(rng, size, channels, patch):
    x = jnp.asarray(rng.standard_normal((2, *size, channels)), jnp.float32)
    boxed = jax.jit(PatchEmbed(patch, 6).init)(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == (None, None, "patch", "embed")
    params = {**nn.meta.unbox(boxed), "bias": jnp.arange(6.0)}
    conv = nn.Conv(6, (patch, patch), (patch, patch), padding="VALID")
    got = jax.jit(PatchEmbed(patch, 6).apply)({"params": params}, x)
    np.testing.assert_allclose(got, jax.jit(conv.apply)({"params": params}, x), atol=1e-5)


@pytest.mark.parametrize("size", [(10, 8), (8, 3)])
def test_an_indivisible_image_is_a_sentence_at_trace_time(size):
    with pytest.raises(UserError, match=f"image size {size[0]}x{size[1]} is not divisible by the patch size 4; use"):
        jax.eval_shape(PatchEmbed(4, 6).init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_positions_add_and_refuse_another_length(rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.bfloat16)
    boxed = jax.jit(PositionEmbedding().init)(jax.random.key(0), x)
    assert boxed["params"]["embedding"].names == (None, "tokens", "embed")
    table = jnp.asarray(rng.standard_normal((1, 5, 4)), jnp.bfloat16)
    got = jax.jit(PositionEmbedding().apply)({"params": {"embedding": table.astype(jnp.float32)}}, x)
    np.testing.assert_array_equal(got, x + jnp.broadcast_to(table, x.shape))
    for params in (boxed, nn.meta.unbox(boxed)):
        with pytest.raises(UserError, match="for 5 tokens but the image gives 3; keep the image size"):
            jax.jit(PositionEmbedding().apply)(params, x[:, :3])


@pytest.mark.first(1)
@pytest.mark.parametrize("cut", [8, 3])
def test_a_kernel_is_resized_by_the_pseudo_inverse_where_it_is_used(rng, cut):
    """Against the two-dimensional map in float64; larger patches of the resized image give the same tokens."""
    kernel, bias = rng.standard_normal((4, 4, 3, 5)), rng.standard_normal(5)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    image = rng.standard_normal((2, 2 * cut, cut, 3))
    run = jax.jit(lambda p, x: PatchEmbed(4, 5, cut=cut).apply({"params": p}, x))
    got = run(params, image.astype(np.float32))
    row = resize_matrix(4, cut, "bilinear_plain")
    wide = np.linalg.pinv(np.kron(row, row).T) @ kernel.reshape(16, -1)
    patches = image.reshape(2, 2, cut, cut, 3)
    want = np.einsum("bnijc,ijcd->bnd", patches, wide.reshape(cut, cut, 3, 5)) + bias
    np.testing.assert_allclose(got[:, :, 0], want, atol=1e-5)
    assert jax.eval_shape(jax.grad(lambda p: run(p, jnp.float32(image)).sum()), params)["kernel"].shape == (4, 4, 3, 5)
    if cut > 4:
        small = rng.standard_normal((2, 8, 4, 3))
        large = np.einsum("ih,jw,bnhwc->bnijc", row, row, small.reshape(2, 2, 4, 4, 3)).reshape(image.shape)
        plain = jax.jit(lambda p, x: PatchEmbed(4, 5).apply({"params": p}, x))(params, small.astype(np.float32))
        np.testing.assert_allclose(run(params, large.astype(np.float32)), plain, atol=1e-5)


def test_positions_are_resized_where_they_are_used(rng):
    table = rng.standard_normal((1, 1 + 3 * 2, 4))
    x = jnp.asarray(rng.standard_normal((2, 1 + 4 * 5, 4)), jnp.float32)
    run = lambda grids, x: PositionEmbedding().apply({"params": {"embedding": jnp.float32(table)}}, x, grids=grids)  # noqa: E731
    got = jax.jit(run, static_argnums=0)(((3, 2), (4, 5)), x)
    np.testing.assert_allclose(got, x + resize_positions(table, (3, 2), (4, 5), 1), atol=1e-6)
    with pytest.raises(UserError, match="for 7 tokens but the image gives 5"):
        run(((2, 2), (4, 5)), x)


@pytest.mark.first(1)
@pytest.mark.parametrize("grid", [(2, 9), (4, 4), (7, 1)])
def test_positions_of_a_grid_are_resized_to_any_other(rng, grid):
    table = rng.standard_normal((1, 16, 6)).astype(np.float32)
    at = np.indices(grid).reshape(1, 2, -1).swapaxes(1, 2)
    module, x = GridPositions(4), jnp.zeros((1, at.shape[1], 6))
    assert (
        jax.eval_shape(module.init, jax.random.key(0), x, at, np.array([grid]))["params"]["embedding"].names[1]
        == "tokens"
    )
    got = jax.jit(module.apply)({"params": {"embedding": table}}, x, at, np.array([grid]))
    np.testing.assert_allclose(got, resize_positions(table, (4, 4), grid, 0, "bilinear"), atol=1e-6)


def test_patches_of_unlike_images_times_the_same_matrix(rng):
    image = jnp.asarray(rng.standard_normal((1, 4, 6, 3)), jnp.float32)
    params = {"kernel": rng.standard_normal((2, 2, 3, 5)).astype(np.float32), "bias": np.ones(5, np.float32)}
    cut = image.reshape(1, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(1, 6, -1)
    apply = jax.jit(PatchEmbed(2, 5).apply)
    got = apply({"params": params}, Patches(cut, jnp.zeros((1, 6, 2)), jnp.ones((1, 6), bool)))
    np.testing.assert_array_equal(got, apply({"params": params}, image).reshape(1, 6, 5))
    with pytest.raises(UserError, match="patches of 11 values are not 2x2 pixels"):
        apply({"params": params}, Patches(cut[..., 1:], None, None))


def test_sincos_is_separable_and_needs_a_multiple_of_four():
    table = sincos_positions(3, 5, 8).reshape(3, 5, 8)
    omega = np.array([1.0, 1e-4])
    for y in range(3):
        for x in range(5):
            want = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
            np.testing.assert_allclose(table[y, x], want, atol=1e-6)
    np.testing.assert_array_equal(sincos_positions(1, 1, 8, (3, 5))[0], table[1, 2])  # the middle
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


GRIDS = [((14, 14), (24, 24)), ((14, 14), (6, 6)), ((7, 5), (3, 11)), ((2, 2), (5, 5)), ((4, 4), (1, 1))]


def bicubic(torch, timm, positions, old, new):
    return timm.layers.resample_abs_pos_embed(torch.tensor(positions), list(new), list(old), num_prefix_tokens=1)


def bicubic_plain(torch, timm, positions, old, new):
    return interpolate(torch, positions, old, new, mode="bicubic")


def bilinear(torch, timm, positions, old, new):
    return interpolate(torch, positions, old, new, mode="bilinear", antialias=True)


def bilinear_corners(torch, timm, positions, old, new):
    """The original repository calls SciPy."""
    grid = positions[0, 1:].reshape(*old, -1)
    grid = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    return np.concatenate([positions[:, :1], grid.reshape(1, new[0] * new[1], -1)], axis=1)


def interpolate(torch, positions, old, new, **options):
    x = torch.tensor(positions)
    grid = x[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=new, align_corners=False, **options)
    return torch.cat([x[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def bilinear_plain(torch, timm, positions, old, new):
    """``tf.image.resize``."""
    return interpolate(torch, positions, old, new, mode="bilinear", antialias=False)


PEERS = (bicubic, bicubic_plain, bilinear, bilinear_plain, bilinear_corners)


@pytest.mark.parametrize("peer", PEERS, ids=lambda f: f.__name__)
def test_positions_are_resized_as_the_peer_does(rng, torch, timm, peer):
    assert set(RESIZES) == {peer.__name__ for peer in PEERS}
    for old, new in GRIDS:
        positions = rng.standard_normal((1, 1 + old[0] * old[1], 3)).astype(np.float32)
        got = resize_positions(positions, old, new, 1, peer.__name__)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.asarray(peer(torch, timm, positions, old, new)), atol=1e-5)
        np.testing.assert_array_equal(got[:, 0], positions[:, 0])


@pytest.mark.parametrize("method", RESIZES)
def test_a_resize_keeps_constants_and_the_same_size(method):
    for old in (1, 2, 7):
        np.testing.assert_array_equal(resize_matrix(old, old, method), np.eye(old))
        for new in (1, 3, 16):
            np.testing.assert_allclose(resize_matrix(old, new, method).sum(1), np.ones(new), atol=1e-12)


def test_an_unknown_way_to_resize():
    with pytest.raises(UserError, match="unknown resize method 'bicubik'; did you mean 'bicubic'"):
        resize_matrix(4, 5, "bicubik")


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8), (16, 14), (5, 7), (6, 6)])
def test_patches_are_resized_as_timm_does(rng, torch, timm, old, new):
    kernel = rng.standard_normal((old, old, 3, 4)).astype(np.float32)
    theirs = timm.layers.resample_patch_embed(torch.tensor(kernel.transpose(3, 2, 0, 1)), [new, new]).numpy()
    got = resize_patches(kernel, new, "bicubic")
    assert got.shape == (new, new, 3, 4) and got.dtype == np.float32
    np.testing.assert_allclose(got, theirs.transpose(2, 3, 1, 0), atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 14), (32, 16), (16, 4)])
def test_patches_are_resized_as_big_vision_does(rng, torch, timm, old, new):
    """By ``tf.image.resize``, which is not antialiased: timm has the same rule under two arguments."""
    kernel = rng.standard_normal((old, old, 3, 4)).astype(np.float32)
    theirs = timm.layers.resample_patch_embed(
        torch.tensor(kernel.transpose(3, 2, 0, 1)), [new, new], interpolation="bilinear", antialias=False
    ).numpy()
    got = resize_patches(kernel, new, "bilinear_plain")
    np.testing.assert_allclose(got, theirs.transpose(2, 3, 1, 0), atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("method", RESIZES)
def test_larger_patches_answer_as_the_patches_they_were_enlarged_from(rng, method):
    """The property that defines the resized kernel; the same size gives the same bits."""
    kernel, x = rng.standard_normal((5, 5, 2, 3)), rng.standard_normal((4, 5, 5, 2))
    matrix = resize_matrix(5, 8, method)
    large = np.einsum("ih,jw,bhwc->bijc", matrix, matrix, x)
    want = np.einsum("bhwc,hwcd->bd", x, kernel)
    np.testing.assert_allclose(np.einsum("bijc,ijcd->bd", large, resize_patches(kernel, 8, method)), want, atol=1e-9)
    assert resize_patches(kernel, 5, method) is kernel


def test_smaller_patches_answer_as_well_as_they_can(rng):
    """Least squares over all patches: a system of equations solved another way."""
    kernel = rng.standard_normal((4, 4, 1, 2))
    shrink = np.kron(resize_matrix(4, 3), resize_matrix(4, 3))
    want = np.linalg.lstsq(shrink.T, kernel.reshape(16, 2), rcond=None)[0]
    np.testing.assert_allclose(resize_patches(kernel, 3).reshape(9, 2), want, atol=1e-12)


def test_tokens_are_rows_of_the_table_and_positions_start_anywhere(rng):
    table = jnp.asarray(rng.standard_normal((7, 4)), jnp.float32)
    tokens = jnp.asarray([[3, 0, 6], [1, 1, 5]], jnp.int32)
    module = TokenEmbed(7, 4)
    variables = {"params": {"embedding": table}}
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, tokens), np.asarray(table)[np.asarray(tokens)])
    outside = np.isnan(jax.jit(module.apply)(variables, tokens.at[0, 1].set(7))).any(axis=-1)
    assert outside.tolist() == [[False, True, False], [False] * 3]
    low = jax.jit(TokenEmbed(7, 4, "bfloat16").apply)(variables, tokens)
    assert low.dtype == jnp.bfloat16

    rows = jnp.asarray(rng.standard_normal((1, 5, 4)), jnp.float32)
    x = jnp.zeros((2, 3, 4))
    add = jax.jit(lambda start: PositionEmbedding(length=5).apply({"params": {"embedding": rows}}, x, start))
    for start in (0, 2):
        np.testing.assert_array_equal(add(start)[1], rows[0, start : start + 3])
    with pytest.raises(UserError, match="a text of 6 tokens is longer than the 5 positions"):
        jax.jit(PositionEmbedding(length=5).apply)({"params": {"embedding": rows}}, jnp.zeros((1, 6, 4)))


def test_patches_without_a_bias(rng):
    image = jnp.asarray(rng.standard_normal((1, 4, 4, 3)), jnp.float32)
    module = PatchEmbed(2, 5, use_bias=False)
    variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), image))
    assert set(variables["params"]) == {"kernel"}
    with_bias = {"params": {**variables["params"], "bias": jnp.zeros(5)}}
    np.testing.assert_array_equal(
        jax.jit(module.apply)(variables, image), jax.jit(PatchEmbed(2, 5).apply)(with_bias, image)
    )
