"""Each RandAugment operation against PIL, and the frequencies of the drawn ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.augment import randaugment as ra
from vit_jax.types import UsageError, UserError

H, W = 20, 26
apply = jax.jit(ra.apply)


def run(name, image, amount):
    return np.asarray(apply(np.float32(image) / 255, ra.NAMES.index(name), jnp.float32(amount))) * 255


def affine(image, data):
    """PIL's transform with ``data`` given about the centre."""
    a, b, c, d, e, f = data
    about = (a, b, c + W / 2 - a * W / 2 - b * H / 2, d, e, f + H / 2 - d * W / 2 - e * H / 2)
    fill = (127, 127, 127)
    return image.transform((W, H), Image.Transform.AFFINE, about, Image.Resampling.BILINEAR, fillcolor=fill)


PIL_OPS = {
    "identity": lambda x, m: x,
    "rotate": lambda x, m: x.rotate(30 * m, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127)),
    "shear_x": lambda x, m: affine(x, (1, -0.3 * m, 0, 0, 1, 0)),
    "shear_y": lambda x, m: affine(x, (1, 0, 0, -0.3 * m, 1, 0)),
    "translate_x": lambda x, m: affine(x, (1, 0, 0.45 * W * m, 0, 1, 0)),
    "translate_y": lambda x, m: affine(x, (1, 0, 0, 0, 1, 0.45 * H * m)),
    "brightness": lambda x, m: ImageEnhance.Brightness(x).enhance(1 + 0.9 * m),
    "contrast": lambda x, m: ImageEnhance.Contrast(x).enhance(1 + 0.9 * m),
    "saturation": lambda x, m: ImageEnhance.Color(x).enhance(1 + 0.9 * m),
    "sharpness": lambda x, m: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * m),
    "solarize": lambda x, m: ImageOps.solarize(x, 256 * (1 - abs(m))),
    "posterize": lambda x, m: ImageOps.posterize(x, 8 - round(4 * abs(m))),
    "autocontrast": lambda x, m: ImageOps.autocontrast(x),
    "equalize": lambda x, m: ImageOps.equalize(x),
}


@pytest.mark.parametrize("name", ra.NAMES)
def test_each_operation_is_pils_to_rounding(rng, name):
    image = rng.integers(30, 200, (H, W, 3), np.uint8)
    for amount in (0.75, -0.5):
        theirs = np.float32(PIL_OPS[name](Image.fromarray(image), amount))
        ours = run(name, image, amount)
        if name in ("posterize", "equalize", "identity"):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
        else:
            far = np.abs(ours - theirs).max(-1) > 1.5
            # Where a map puts a sample exactly on the border, either side is right.
            limit = 0.03 if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y") else 0
            assert far.mean() <= limit, (name, amount, far.mean())


def test_equalize_edge_cases_are_pils(rng):
    steps = np.repeat(np.arange(6, dtype=np.uint8)[:, None] * 40, 50, axis=1)
    equalize = jax.jit(ra.equalize)
    noise = rng.integers(0, 256, (6, 50), np.uint8)
    for channel in (np.full((6, 50), 7, np.uint8), steps, noise, noise // 90, np.minimum(noise, 9), steps[:, :3]):
        image = np.repeat(channel[..., None], 3, axis=-1)
        theirs = np.asarray(ImageOps.equalize(Image.fromarray(image)))
        ours = equalize(np.float32(image) / 255)
        np.testing.assert_array_equal(np.round(np.asarray(ours) * 255), theirs)


def test_autocontrast_leaves_a_constant_channel():
    image = np.full((4, 4, 3), 0.3, np.float32)
    image[0, 0] = (0.1, 0.3, 0.3)
    out = np.asarray(ra.autocontrast(image))
    assert out[0, 0, 0] == 0 and out[1, 1, 0] == 1 and (out[..., 1:] == np.float32(0.3)).all()


def test_the_policy_draws_every_operation_equally_and_applies_its_own(rng):
    image = np.float32(rng.integers(0, 256, (8, 10, 3))) / 255
    op = ra.RandAugment(num_ops=1, magnitude=6.0, ops=("solarize", "identity", "shear_x"))
    out = np.asarray(jax.jit(jax.vmap(op, (0, None)))(jax.random.split(jax.random.key(0), 900), image))
    one = functools.partial(apply, image)
    expected = [one(ra.NAMES.index(n), jnp.float32(a)) for n, a in (("identity", 0), ("solarize", 0.6))]
    expected += [one(ra.NAMES.index("shear_x"), jnp.float32(a)) for a in (0.6, -0.6)]
    share = [np.isclose(out, np.asarray(e), atol=1e-5).all((1, 2, 3)).mean() for e in expected]
    np.testing.assert_allclose(share, [1 / 3, 1 / 3, 1 / 6, 1 / 6], atol=0.05)


def test_two_layers_are_two_operations_and_magnitude_zero_keeps_maps_and_blends(rng):
    image = rng.random((8, 10, 3), np.float32)
    keep = ra.RandAugment(3, 0.0, ops=("rotate", "shear_y", "translate_x", "sharpness", "contrast", "identity"))
    np.testing.assert_array_equal(jax.jit(keep)(jax.random.key(0), image), image)
    twice = ra.RandAugment(2, 10.0, ops=("brightness",))
    out = jax.jit(jax.vmap(twice, (0, None)))(jax.random.split(jax.random.key(0), 30), image)
    assert np.asarray(out).max((1, 2, 3)).min() / image.max() == pytest.approx(0.01, rel=1e-3)


def test_wrong_fields_are_sentences():
    with pytest.raises(UsageError, match="did you mean 'solarize'"):
        ra.RandAugment(ops=("solarise",))
    with pytest.raises(UserError, match="magnitude=11"):
        ra.RandAugment(magnitude=11.0)
    with pytest.raises(UserError, match="ops is empty"):
        ra.RandAugment(ops=())
