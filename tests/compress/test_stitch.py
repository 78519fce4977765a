"""Maps between anchors are those of least squares, and a network of equal anchors is the anchor."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.compress.stitch import least_squares, stitch
from vit_jax.convert import Pretrained
from vit_jax.convert.preprocess import Preprocess
from vit_jax.data.sources import open_source
from vit_jax.models.composed.stitched import Route
from vit_jax.types import UserError

FIELDS = {"patch": 4, "width": 8, "depth": 3, "heads": 2, "mlp_dim": 12, "num_classes": 3}


def trained(seed, **fields):
    model = models.create("vit", **{**FIELDS, **fields})
    rng = np.random.default_rng(seed)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)
    return Pretrained(model, params, Preprocess(8), ("a", "b", "c"), source=f"anchor {seed}")


def test_what_is_left_is_orthogonal_to_what_was_given(rng):
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 3))
    wide = np.concatenate([x, np.ones((50, 1))], axis=1)
    w = least_squares(x, y)
    np.testing.assert_allclose(wide.T @ (wide @ w - y), 0, atol=1e-10)
    exact = rng.normal(size=(5, 3))
    np.testing.assert_allclose(least_squares(x, wide @ exact), exact, atol=1e-10)


def test_maps_are_the_means_over_their_windows():
    """Against the tokens of Linen's own modules, and a pseudo-inverse; the narrowest anchor comes first."""
    front, back = trained(0), trained(1, width=12, heads=3)
    made = stitch([back, front], "fake:40x8x3", count=9)
    assert made.model.first.width == 8 and made.class_names == ("a", "b", "c")
    assert "9 forms of anchor 0, anchor 1, stitched by least squares on 9 images" in made.notes[0]
    source = open_source("fake:40x8x3", "train")
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, 9).astype(int)]
    image = front.preprocess.prepare(np.stack([front.preprocess.read(record) for record in records]))

    @jax.jit
    def outputs(params, image):
        found = []
        for one, p in zip((front, back), params, strict=True):
            catch = lambda module, name: name == "__call__" and (module.name or "").startswith("block_")  # noqa: E731
            options = {"capture_intermediates": catch, "mutable": ["intermediates"]}
            blocks = one.model.apply({"params": p}, image, **options)[1]["intermediates"]["encoder"]
            found.append([blocks[f"block_{i}"]["__call__"][0] for i in range(3)])
        return found

    ours, theirs = ([np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in rows] for rows in outputs(
        [front.params, back.params], image))  # fmt: skip
    total = np.zeros((9, 12))
    for i in (1, 2):
        for j in (1, 2):
            total += np.linalg.pinv(np.concatenate([ours[i], np.ones((len(ours[i]), 1))], 1)) @ theirs[j - 1]
    got = made.params["stitches_first"]["map_1"]
    np.testing.assert_allclose(np.concatenate([got["kernel"], got["bias"][None]]), total / 4, atol=1e-4)


@pytest.mark.thorough
def test_a_network_of_one_model_twice_is_that_model(rng):
    one = trained(2)
    made = stitch([one, one], "fake:40x8x3", count=20, kernel=2)
    image = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    number = made.model.routes.index(Route(0, 0, 1))
    alone = stitch([one, one], "fake:40x8x3", count=20, kernel=1).params["stitches_first"]
    assert sorted(alone) == ["map_0", "map_1", "map_2"]
    same = least_squares(*[np.asarray(rng.normal(size=(30, 8)))] * 2)
    np.testing.assert_allclose(same, np.eye(9)[:, :8], atol=1e-10)  # its own outputs from its own outputs
    params = {**made.params, "stitches_first": {"map_0": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}}
    run = lambda model, p: jax.jit(lambda q: model.apply({"params": q}, image))(p)  # noqa: E731
    np.testing.assert_allclose(run(made.model.clone(stitch=number), params), run(one.model, one.params), atol=1e-5)


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        (lambda: [trained(0)], "two or three anchors, not 1"),
        (lambda: [trained(0), trained(1, depth=4)], "the first has depth=3, the second depth=4"),
        (lambda: [trained(0), dataclasses.replace(trained(1), class_names=("x", "y", "z"))], "know other classes"),
        (lambda: [trained(0), dataclasses.replace(trained(1), preprocess=Preprocess(16))], "prepare images differ"),
        (lambda: [trained(0), dataclasses.replace(trained(1), model=models.create("mixer_s16"))], "is a Mixer, and"),
    ],
)
def test_what_cannot_be_stitched_is_a_sentence(anchors, words):
    with pytest.raises(UserError, match=words):
        stitch(anchors(), "fake:40x8x3")
