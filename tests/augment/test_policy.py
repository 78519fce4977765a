"""The whole policy: independence of devices and batches, errors, evaluation, configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import config, sharding
from vit_jax.augment import NORMS, OPS, Augment, Norm
from vit_jax.augment import geometry as g
from vit_jax.augment.color import RandomErasing
from vit_jax.augment.mix import Cutmix, Mixup
from vit_jax.types import UsageError, UserError

EVERYTHING = ("inception_crop", "flip", "affine", "color_jitter(hue=0.1)", "randaugment", "random_erasing(prob=1)")


def make(**kwargs):
    return config.parse(Augment, kwargs, "augment")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    n = 16
    return {
        "image": rng.integers(0, 256, (n, 18, 18, 3), np.uint8),
        "size": rng.integers(5, 60, (n, 2)).astype(np.int32),
        "label": rng.integers(0, 5, n).astype(np.int32),
        "mask": np.ones(n, bool),
        "index": rng.integers(0, 2**32, n, dtype=np.uint32),
    }


def compiled(fn):
    """Compiled as for a user: with the emitters of conftest.py an image would depend on the size of its batch."""
    return jax.jit(fn, compiler_options={"xla_cpu_use_fusion_emitters": True})


def rows(batch, index):
    return {k: v[index] for k, v in batch.items()}


@pytest.fixture(scope="module")
def everything(batch):
    fn = make(size=13, train=EVERYTHING).train_fn(0)
    return fn, np.asarray(compiled(fn)(jax.random.key(7), batch)["image"])


def test_an_image_depends_on_key_and_index_not_on_batch_or_position(batch, everything):
    fn, whole = everything
    assert whole.shape == (16, 13, 13, 3) and whole.dtype == np.float32 and np.isfinite(whole).all()
    pick = np.array([11, 2, 5])
    some = compiled(fn)(jax.random.key(7), rows(batch, pick))["image"]
    np.testing.assert_allclose(some, whole[pick], atol=1e-6)
    same = rows(batch, np.zeros(16, int)) | {"index": batch["index"]}
    differ = np.asarray(compiled(fn)(jax.random.key(7), same)["image"])
    assert len({x.tobytes() for x in differ}) == 16


@pytest.mark.thorough
def test_eight_devices_see_the_images_of_one(batch, everything):
    fn, whole = everything
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=4))
    out = compiled(fn)(jax.random.key(7), sharding.put(batch, mesh))["image"]
    assert len(out.sharding.device_set) == 8 and not out.sharding.is_fully_replicated
    np.testing.assert_allclose(out, whole, atol=1e-6)


@pytest.mark.thorough
def test_mixing_is_the_same_on_eight_devices_and_exchanges_nothing(batch):
    fn = make(size=18, train=("mixup(alpha=1)", "cutmix(per='example')")).train_fn(5)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8))
    single = jax.jit(fn)
    sharded = jax.jit(fn, out_shardings=sharding.data_sharding(mesh))
    sharded = sharded.lower(jax.random.key(0), sharding.put(batch, mesh)).compile()
    for seed, valid in ((0, 16), (1, 16), (2, 11), (3, 11)):
        key, batch = jax.random.key(seed), batch | {"mask": np.arange(16) < valid}
        one, eight = single(key, batch), sharded(key, sharding.put(batch, mesh))
        np.testing.assert_allclose(eight["image"], one["image"], atol=1e-6)
        np.testing.assert_allclose(eight["label"], one["label"], atol=1e-6)
        np.testing.assert_allclose(one["label"].sum(1), 1, atol=1e-6)
    text = sharded.as_text()
    assert not [c for c in ("all-gather(", "all-to-all(", "collective-permute(") if c in text]


def test_any_generator_gives_rows_that_are_independent_of_the_batch(batch):
    fn = jax.jit(make(size=18, train=("random_crop",)).train_fn(0))
    key = jax.random.key(0, impl="rbg")
    whole = np.asarray(fn(key, batch)["image"])
    np.testing.assert_array_equal(fn(key, rows(batch, slice(4, 9)))["image"], whole[4:9])
    raw = jax.random.key_data(jax.random.key(0))
    np.testing.assert_array_equal(fn(raw, batch)["image"], fn(jax.random.key(0), batch)["image"])


def test_an_op_reads_the_key_of_its_place(batch):
    one, two = (jax.jit(make(size=18, train=t).train_fn(0)) for t in (("flip",), ("flip", "flip")))
    a, b = (np.asarray(f(jax.random.key(1), batch)["image"]) for f in (one, two))
    flipped = lambda x: (x[:, :, ::-1] == x0).all((1, 2, 3))  # noqa: E731
    x0 = Norm()(jnp.float32(batch["image"]) * (1 / 255))
    assert 0 < flipped(a).sum() < 16 and 0 < flipped(b).sum() < 16 and (flipped(a) != flipped(b)).any()


def test_evaluation_without_resampling_is_normalisation_and_slices_exactly(batch):
    x = np.float32(batch["image"]) / 255
    plain = jax.jit(make(size=18, norm="imagenet").eval_fn())(batch)
    norm = NORMS["imagenet"].fields
    np.testing.assert_allclose(plain["image"], (x - norm["mean"]) / np.array(norm["std"]), atol=1e-5)
    np.testing.assert_array_equal(plain["label"], batch["label"])
    sliced = make(size=12, crop=12 / 18).eval_fn()(batch)["image"]
    np.testing.assert_allclose(sliced, 2 * x[:, 3:15, 3:15] - 1, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_crop_and_resize_is_one_antialiased_resampling(batch, interpolation):
    ours = np.asarray(make(size=5, crop=0.75, interpolation=interpolation).eval_fn()(batch)["image"]) / 2 + 0.5
    box, method = (2.25, 2.25, 15.75, 15.75), Image.Resampling[interpolation.upper()]
    for image, out in zip(batch["image"][:4], ours, strict=False):
        theirs = np.float32(Image.fromarray(image).resize((5, 5), method, box=box)) / 255
        np.testing.assert_allclose(out, theirs, atol=1.01 / 255)


def test_every_op_of_the_table_builds_from_its_name_and_is_hashable():
    for name, cls in OPS.items():
        (op,) = make(size=8, train=(name,)).train
        assert isinstance(op, cls) and op == cls() and hash(op) == hash(cls())
    full = make(
        size=8, train=["inception_crop(scale=(0.5, 1))", {"name": "flip", "prob": 0.1}, "random_erasing", "mixup"]
    )
    assert full.train == (g.InceptionCrop((0.5, 1.0)), g.Flip(0.1), RandomErasing(), Mixup())
    assert full.mixes == (Mixup(),) and hash(full) == hash(full)


def test_norm_sets_and_own_statistics():
    assert make(size=8).norm == make(size=8, norm="inception").norm == Norm()
    own = make(size=8, norm="norm(mean=(0, 0, 0), std=(1, 1, 2))").norm
    np.testing.assert_allclose(own(jnp.ones((1, 1, 1, 3)))[0, 0, 0], [1, 1, 0.5])
    assert make(size=8, norm="clip").norm.std[0] == 0.26862954


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"train": ("flipp",)}, "unknown augment.train.0. 'flipp'; did you mean 'flip'"),
        ({"train": ("flip", "inception_crop")}, "out of order"),
        ({"train": ("mixup", "flip")}, "out of order"),
        ({"train": ("resize", "random_crop")}, "at most one crop or resize"),
        ({"train": ("flip(prob=3)",)}, "prob=3.0 is not allowed"),
        ({"norm": "norm(std=(0, 1, 1))"}, r"norm.std\[0\]=0.0 is not allowed"),
        ({"norm": "imagnet"}, "did you mean 'imagenet'"),
        ({"crop": 1.5}, "crop=1.5 is not allowed"),
        ({"size": 0}, "size=0"),
        ({"interpolation": "nearest"}, "interpolation='nearest' is not allowed"),
    ],
)
def test_wrong_settings_are_sentences(kwargs, message):
    with pytest.raises(UserError, match=message):
        make(**({"size": 8} | kwargs))


def test_what_only_shows_with_the_data_is_a_sentence_too(batch):
    with pytest.raises(UserError, match="Cutmix needs the number of classes"):
        Augment(8, (Cutmix(),)).train_fn(0)
    with pytest.raises(UserError, match="canvas has 18 px and the model takes 8 px"):
        jax.eval_shape(Augment(8, (g.Flip(),)).train_fn(0), jax.random.key(0), batch)
    with pytest.raises(UsageError, match=r"unknown key 'augment\.sizes'"):
        make(sizes=3)


def test_patches_in_training_and_evaluation(batch):
    """A flipped image's patches are the image's, flipped; what fills up is 0 whatever the normalisation."""
    fields = {"size": 12, "patch": 4, "norm": "imagenet"}
    key = jax.random.key(0)
    plain, flipped = (
        jax.jit(make(**fields, train=train).train_fn(0))(key, batch)["image"] for train in ((), ("flip(prob=1)",))
    )
    assert plain.pixels.shape == (16, 9, 48) and not np.asarray(plain.pixels)[~np.asarray(plain.real)].any()
    np.testing.assert_array_equal(plain.real, flipped.real)
    rows, columns = (np.asarray(plain.at).max(axis=1) + 1).T
    for b in range(4):
        a, z = (
            np.asarray(x.pixels)[b, : rows[b] * columns[b]].reshape(rows[b], columns[b], 4, 4, 3)
            for x in (plain, flipped)
        )
        np.testing.assert_allclose(z, a[:, ::-1, :, ::-1], atol=1e-5)
    size = np.full((16, 2), (8, 16), np.int32)
    seen = jax.jit(make(**fields).eval_fn())({**batch, "size": size})["image"]
    assert seen.real.sum() == 16 * 8
    want = NORMS["imagenet"]()(jnp.asarray(batch["image"][0, :4, :4] / 255, jnp.float32))
    np.testing.assert_allclose(seen.pixels[0, 0], want.reshape(-1), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 10}, "size=10 is no multiple of patch=4"),
        ({"crop": 0.5}, "crop=0.5 is for squares"),
        ({"train": ("mixup",)}, "Mixup is for squares"),
        ({"train": ("random_crop",)}, "RandomCrop is for squares"),
    ],
)
def test_patches_of_squares_alone_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        make(**{"size": 12, "patch": 4, **fields})
