"""Images in their own shape on the device: against the host's canvases, against the resampling of whole images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.augment.geometry import resample
from vit_jax.augment.patches import cut, fit, pictures, places, resampled
from vit_jax.data.framing import Framing, patch_grid
from vit_jax.types import Patches


def whole(patches, patch, grid):
    """The image that one row of patches makes."""
    rows, columns = grid
    x = np.asarray(patches.pixels)[: rows * columns].reshape(rows, columns, patch, patch, 3)
    return x.swapaxes(1, 2).reshape(rows * patch, columns * patch, 3)


def test_what_the_host_lays_is_cut_again(rng):
    frame = Framing("patches", edge=12, rounding="transformers", interpolation="bilinear", patch=4)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((20, 20), (50, 9), (8, 30))]
    sizes = [frame.told(image, (0, 0), 17) for image in images]
    assert sizes == [(12, 12), (24, 4), (8, 16)]
    found = jax.jit(cut, static_argnums=(2, 3))(
        np.stack([np.asarray(frame(x, 17)) for x in images]), jnp.array(sizes), 4, 9
    )
    for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        one = jax.tree.map(lambda x, row=row: x[row], found)
        squashed = Framing("squash", rounding="transformers", interpolation="bilinear")
        want = np.asarray(squashed(image, height)) if height == width else None
        got = whole(one, 4, (height // 4, width // 4))
        if want is not None:
            np.testing.assert_array_equal(got, want)
        assert one.real.sum() == height * width // 16 and not one.at[~one.real].any()
        np.testing.assert_array_equal(one.at[one.real].max(axis=0), [height // 4 - 1, width // 4 - 1])


@pytest.mark.first(1)
@pytest.mark.parametrize(("original", "box"), [((64, 48), (0.25, 0.1, 0.75, 0.9)), ((40, 90), (0.0, 0.0, 1.0, 1.0))])
def test_patches_are_those_of_the_box_resampled_as_a_whole(rng, original, box):
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    sides = np.subtract(box[2:], box[:2]) * original
    grid = patch_grid(*sides, 4, 20)
    found = jax.jit(resampled, static_argnums=(3, 4, 5))(image, jnp.array(box), jnp.array(original), 4, 20, "bilinear")
    want = resample(image, 32 * jnp.array(box), (4 * grid[0], 4 * grid[1]))
    np.testing.assert_allclose(whole(found, 4, grid), want, atol=1e-5)
    assert found.real.sum() == np.prod(grid) <= 20


def test_the_devices_grid_is_the_hosts(rng):
    sizes = rng.integers(1, 3000, (400, 2))
    got = np.asarray(jax.vmap(lambda size: fit(size, 256))(jnp.asarray(sizes, jnp.float32)))
    want = np.array([patch_grid(*size, 16, 256) for size in sizes.tolist()])
    small = sizes.max(axis=1) * 100 < 16 * np.maximum(want.max(axis=1), 16)  # the host enlarges 100 times at most
    differ = (got != want).any(axis=1) & ~small
    assert differ.mean() <= 0.005 and (got.prod(axis=1) <= 256).all() and got.min() >= 1
    assert np.abs(got - want)[~small].max() <= 1


def test_places_of_nothing():
    at, real = places(jnp.array([[0, 0], [2, 1]]), 3)
    np.testing.assert_array_equal(real, [[False] * 3, [True, True, False]])
    np.testing.assert_array_equal(at[1], [[0, 0], [1, 0], [0, 0]])


def test_pictures_of_images_in_their_own_shape():
    at = np.array([[[0, 0], [0, 1], [0, 0]], [[0, 0], [1, 0], [2, 0]]])
    pixels = np.arange(1.0, 7.0).reshape(2, 3, 1).repeat(12, axis=2)
    patches = Patches(pixels, at, np.array([[True, True, False], [True] * 3]))
    found = pictures(patches)[:, ::2, ::2, 0]
    np.testing.assert_array_equal(found, [[[1, 2, 0], [0, 0, 0], [0, 0, 0]], [[4, 0, 0], [5, 0, 0], [6, 0, 0]]])
