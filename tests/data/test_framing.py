"""From an image of any shape to a square: what is seen, which way is rounded, by which filter."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.framing import CENTER, TRAINING, Framing
from vit_jax.types import UserError

BICUBIC = Image.Resampling.BICUBIC
PLACES = Image.fromarray(np.stack(np.broadcast_arrays(*np.mgrid[:100, :180], 0), axis=-1).astype(np.uint8))
"""Every pixel says where it is: row, column, 0."""


def random_image(rng, height, width):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def corner(frame, canvas, image=PLACES):
    """Row and column of the first pixel of the square."""
    return tuple(int(x) for x in np.asarray(frame(image, canvas))[0, 0, :2])


@pytest.mark.parametrize(
    ("rounding", "canvas", "place"),
    [
        ("vit_jax", 100, (0, 40)), ("torchvision", 100, (0, 40)), ("transformers", 100, (0, 40)),
        ("vit_jax", 97, (1, 41)), ("torchvision", 97, (2, 42)), ("transformers", 97, (1, 41)),  # 1.5 and 41.5
        ("vit_jax", 95, (2, 42)), ("torchvision", 95, (2, 42)), ("transformers", 95, (2, 42)),  # 2.5 and 42.5
    ],
)  # fmt: skip
def test_the_place_of_a_cut(rounding, canvas, place):
    """Half of what is left out: rounded down, or to the even number as Python rounds."""
    assert corner(Framing(edge=100, rounding=rounding), canvas) == place


@pytest.mark.parametrize(("rounding", "width"), [("vit_jax", 3), ("torchvision", 2), ("transformers", 2)])
def test_the_long_side(rounding, width):
    """Three and a half pixels of five for two of three: 2.86 is rounded, or cut off."""
    assert Framing(rounding=rounding).resized((10, 7), 2) == (width, 2)
    assert Framing(rounding=rounding).resized((7, 10), 2) == (2, width)


def test_the_whole_image_squashed(rng):
    image = random_image(rng, 30, 70)
    assert np.array_equal(Framing("squash")(image, 24), image.resize((24, 24), BICUBIC))
    cut = np.asarray(image.resize((30, 30), BICUBIC))[3:27, 3:27]
    assert np.array_equal(Framing("squash", edge=30)(image, 24), cut)


def test_a_whole_image_in_its_shape():
    frame = Framing("pad", fill=(1, 2, 3), rounding="torchvision")
    square = np.asarray(frame(PLACES, 45))  # 45 x 25, centred: ten rows above
    assert square.shape == (45, 45, 3)
    assert (square[:10] == (1, 2, 3)).all() and (square[35:] == (1, 2, 3)).all()
    assert np.array_equal(square[10:35], PLACES.resize((45, 25), BICUBIC))
    odd = np.asarray(frame(PLACES, 46))  # 46 x 26
    assert (odd[:10] == (1, 2, 3)).all() and not (odd[10] == (1, 2, 3)).all()
    larger = np.asarray(dataclasses.replace(frame, edge=90)(PLACES, 70))  # 90 x 50: cut and filled
    assert np.array_equal(larger[10:60], np.asarray(PLACES.resize((90, 50), BICUBIC))[:, 10:80])


def test_what_is_no_patch_is_left_out():
    """The first 92 of the 100 pixels that the cut has, not the middle ones."""
    assert np.array_equal(Framing(rest=8)(PLACES, 92), np.asarray(PLACES)[:92, 40:132])


def test_an_edge_smaller_than_the_canvas_has_black_beside_it(rng):
    square = np.asarray(Framing(edge=10, rounding="transformers")(random_image(rng, 10, 10), 13))
    assert not square[0].any() and not square[:, 0].any() and not square[11:].any() and square[1:11, 1:11].any()


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_pillows_filters(rng, name):
    image = random_image(rng, 40, 40)
    want = image.resize((16, 16), Image.Resampling[name.upper()])
    assert np.array_equal(Framing(interpolation=name)(image, 16), want)


def test_bilinear_without_antialiasing():
    """Four to two: the mean of two neighbours, wherever they are; two to four: a quarter of the way."""
    line = np.array([[0, 100, 200, 40]], np.uint8)
    image = Image.fromarray(np.broadcast_to(line[..., None], (4, 4, 3)).copy())
    frame = Framing("squash", interpolation="bilinear_plain")
    assert np.asarray(frame(image, 2))[0, :, 0].tolist() == [50, 120]
    eight = Image.fromarray(
        np.repeat(np.array([[0, 10, 20, 90, 30, 50, 60, 200]], np.uint8)[..., None], 3, -1).repeat(8, 0)
    )
    assert np.asarray(frame(eight, 2))[0, :, 0].tolist() == [15, 55]  # what lies beside the middles
    assert np.asarray(frame(image.crop((0, 0, 2, 2)), 4))[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 40), (23, 37), (300, 70)])
def test_torchs_arithmetic(torch, rng, name, shape):
    """Weights of 16 bits, rows first: what PyTorch makes of uint8 images, but for the last bit."""
    image = random_image(rng, *shape)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    want = torch.nn.functional.interpolate(pixels, (64, 64), mode=name, antialias=True)[0].numpy().transpose(1, 2, 0)
    ours = np.asarray(Framing("squash", interpolation=name, rounding="transformers")(image, 64))
    assert np.abs(ours.astype(int) - want).max() <= 1


def test_an_image_that_fits_is_not_resampled(rng):
    image = random_image(rng, 16, 16)
    for rounding in ("vit_jax", "torchvision", "transformers"):
        assert np.array_equal(Framing(rounding=rounding)(image, 16), image)


def test_values_of_runs():
    assert (CENTER.mode, CENTER.draft) == ("center", False) and (TRAINING.mode, TRAINING.draft) == ("squash", True)


@pytest.mark.parametrize("fields", [{"edge": 0}, {"rest": -1}])
def test_nonsense_is_refused(fields):
    with pytest.raises(UserError, match="is not allowed; give a number from"):
        Framing(**fields)


@pytest.mark.peer
def test_patches_of_an_image_are_as_many_as_transformers_has(rng, transformers):
    from transformers.models.siglip2 import image_processing_siglip2 as theirs

    for height, width in [*rng.integers(1, 2000, (60, 2)).tolist(), (1, 1), (5000, 3), (256, 256), (16, 4096)]:
        for patch, most in ((16, 256), (14, 729)):
            want = theirs.get_image_size_for_max_num_patches(height, width, patch, most)
            assert Framing("patches", edge=int(most**0.5) * patch, patch=patch).resized(
                (width, height), int(most**0.5) * patch
            ) == (want[1], want[0])


def test_patches_lie_one_after_the_other():
    frame = Framing("patches", edge=8, patch=4)
    image = Image.fromarray(np.arange(4 * 12, dtype=np.uint8).reshape(4, 12, 1).repeat(3, 2))
    assert frame.told(image, (1, 2), 10) == (4, 12) and Framing(edge=8).told(image, (1, 2), 10) == (1, 2)
    canvas = np.asarray(frame(image, 10))
    assert canvas.shape == (10, 10, 3) and not canvas[4:, 4:].any() and not canvas[8:].any()
    np.testing.assert_array_equal(canvas[:4, :8], np.asarray(image)[:, :8])
    np.testing.assert_array_equal(canvas[4:8, :4], np.asarray(image)[:, 8:])
