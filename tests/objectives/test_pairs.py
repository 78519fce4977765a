"""Accumulation is exact: k slices give the value and every gradient of the batch, and what others do does not."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import losses, sharding
from vit_jax.models.two_tower import Embedded
from vit_jax.objectives import CoCa, Contrast, base, pairs
from vit_jax.types import UserError

OBJECTIVES = {
    "softmax": Contrast(),
    "sigmoid": Contrast(losses.Sigmoid(), losses.Chunked(3)),
    "cloob": Contrast(losses.Cloob(), losses.Ring(5)),
    "coca": CoCa(label_smoothing=0.1, z_loss=0.01),
}
RNGS = {"dropout": jax.random.key(3)}


@functools.cache
def compiled(name, apply, micro):
    return jax.jit(lambda params, batch: OBJECTIVES[name].value_and_grad(apply, params, batch, RNGS, micro))


@functools.cache
def reference(name, apply, micro):
    """One ordinary gradient of the loss of the whole batch, put together from the slices' outputs in memory."""
    objective = OBJECTIVES[name]

    def loss(params, batch):
        size = len(batch["mask"])
        order = np.arange(size).reshape(-1, micro).T  # slice i holds rows i, i + micro, ...
        out = jax.vmap(lambda i, x, y: apply(params, x, y, train=True, rngs=base.fold(RNGS, i)))(
            jnp.arange(micro), batch["image"][order], batch["text"][order]
        )
        back = np.argsort(order.reshape(-1))
        shared = ("scale", "bias", "vocabulary")
        whole = Embedded(
            **{k: v[0] if k in shared else jnp.reshape(v, (size, *v.shape[2:]))[back] for k, v in out._asdict().items()}
        )
        valid = jnp.asarray(batch["mask"]).astype(whole.image.dtype)
        args = whole.image, whole.text, whole.scale, whole.bias, batch["mask"]
        value = jnp.sum(objective.loss(*args) * valid) / jnp.sum(valid)
        if name == "coca":
            options = {"label_smoothing": objective.label_smoothing, "z_loss": objective.z_loss}
            real = whole.real[:, 1:] & jnp.asarray(batch["mask"])[:, None]
            each = losses.caption_cross_entropy(
                whole.hidden[:, :-1], whole.vocabulary, batch["text"][:, 1:], real, **options
            )
            value += 2 * jnp.sum(each) / jnp.sum(real, dtype=jnp.int32).astype(each.dtype)
        return value

    return jax.jit(jax.value_and_grad(loss))


def compare(got, want, tolerance, least=1e-3):
    """Value and each leaf, relative to the largest entry of the leaf, or to ``least`` where that is larger."""
    np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
    assert set(got[1]) == set(want[1])
    for key, leaf in want[1].items():
        leaf, mine = np.asarray(leaf), np.asarray(got[1][key])
        assert mine.dtype == leaf.dtype
        np.testing.assert_allclose(mine, leaf, rtol=0, atol=tolerance * max(np.abs(leaf).max(), least), err_msg=key)


def rest(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


MICRO = [*itertools.product(OBJECTIVES, (2,)), ("softmax", 4)]
MORE = [("coca", 1), *itertools.product(OBJECTIVES, (4, 8))]
MORE.remove(("softmax", 4))


@pytest.mark.first(2)
@pytest.mark.parametrize(("name", "micro"), [*MICRO, *rest(*MORE)])
def test_exact(name, micro, towers, rng):
    """With dropout on, rows masked, in float64."""
    with jax.enable_x64(True):
        params, batch = towers.make(rng, dtype="float64")
        (value, metrics), grads = compiled(name, towers.apply, micro)(params, batch)
        compare((value, grads), reference(name, towers.apply, micro)(params, batch), 1e-12)
        assert metrics["loss"].count == 13


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "micro"), [("coca", 2), *rest(*(c for c in itertools.product(OBJECTIVES, (2, 4, 8)) if c != ("coca", 2)))]
)
def test_exact_in_float32(name, micro, towers, rng):
    """Both sides round: two of the twelve differ by 1.5e-6 of a leaf's largest entry, all by less than 2e-7."""
    params, batch = towers.make(rng)
    (value, _), grads = compiled(name, towers.apply, micro)(params, batch)
    assert value.dtype == jnp.float32
    compare((value, grads), reference(name, towers.apply, micro)(params, batch), 1e-6, least=1.0)


def plain(params, image, text, *, train, rngs, apply):
    return apply(params, image, text, train=False, rngs=None)


@pytest.mark.parametrize("name", ["softmax", *rest(("coca",))])
def test_without_dropout_the_number_of_slices_does_not_matter(name, towers, rng):
    with jax.enable_x64(True):
        params, batch = towers.make(rng, dtype="float64")
        apply = functools.partial(plain, apply=towers.apply)
        whole = compiled(name, apply, 1)(params, batch)
        (value, metrics), grads = compiled(name, apply, 16)(params, batch)  # one row a slice
        compare((value, grads), (whole[0][0], whole[1]), 1e-12)
        for key, mean in whole[0][1].items():
            np.testing.assert_allclose(metrics[key].value(), mean.value(), rtol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("shape", [(2, 4, 1), *rest(((8, 1, 1),))], ids=str)
@pytest.mark.parametrize("name", ["softmax", "coca", "cloob"])
def test_devices_do_not_matter(name, shape, towers, rng):
    """A ring over 8 devices, rows split, in two slices: dropout masks and all as on one device."""
    mesh = sharding.make_mesh(sharding.MeshConfig(*shape))
    objective = OBJECTIVES[name]
    ring = type(objective)(objective.loss, losses.Ring(1))
    ring = ring if name != "coca" else CoCa(form=losses.Ring(1), label_smoothing=0.1, z_loss=0.01)
    with jax.enable_x64(True):
        params, batch = towers.make(rng, dtype="float64")
        want = compiled(name, towers.apply, 2)(params, batch)
        with jax.set_mesh(mesh):
            run = jax.jit(lambda p, b: ring.value_and_grad(towers.apply, p, b, RNGS, 2))
            got = run(params, sharding.put(batch, mesh))
        compare((got[0][0], got[1]), (want[0][0], want[1]), 1e-12)
        for key, mean in want[0][1].items():
            np.testing.assert_allclose(got[0][1][key].value(), mean.value(), rtol=1e-6)


def per_slice(params, batch, apply, micro):
    """What accumulation usually does: each slice is its own contrast, gradients are averaged."""
    parts = base.split(batch, micro)
    grads = [reference("softmax", apply, 1)(params, {k: v[i] for k, v in parts.items()}) for i in range(micro)]
    return jax.tree.map(lambda *x: sum(x) / micro, *grads)


def open_clip_scheme(params, batch, apply, micro):
    """open_clip's --accum-freq: the whole loss once per slice, all other slices' embeddings constant; summed."""
    parts = base.split(batch, micro)

    def loss(params, j):
        outs = [apply(params, parts["image"][i], parts["text"][i], train=True, rngs={}) for i in range(micro)]
        fixed = [out if i == j else jax.tree.map(jax.lax.stop_gradient, out) for i, out in enumerate(outs)]
        image, text = (jnp.concatenate([getattr(out, k) for out in fixed]) for k in ("image", "text"))
        live: Embedded = outs[j]
        return jnp.mean(losses.Softmax()(image, text, live.scale, live.bias, np.ones(len(image), bool)))

    @jax.jit
    def run(params):
        found = [jax.value_and_grad(loss)(params, j) for j in range(micro)]
        return found[0][0], jax.tree.map(lambda *x: sum(x), *(g for _, g in found))

    return run(params)


@pytest.mark.thorough
def test_other_schemes_fail_the_same_comparison(towers, rng):
    with jax.enable_x64(True):
        params, batch = towers.make(rng, dtype="float64")
        batch["mask"] = np.ones(16, bool)
        apply = functools.partial(plain, apply=towers.apply)
        want = reference("softmax", apply, 1)(params, batch)
        (value, _), grads = compiled("softmax", apply, 4)(params, batch)
        compare((value, grads), want, 1e-12)
        naive = per_slice(params, batch, apply, 4)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            compare(naive, want, 1e-2)
        theirs = open_clip_scheme(params, batch, apply, 4)
        with pytest.raises(AssertionError, match="logit_scale"):
            compare(theirs, want, 1e-6)
        np.testing.assert_allclose(theirs[1]["logit_scale"], 4 * want[1]["logit_scale"], rtol=1e-9)
        np.testing.assert_allclose(theirs[1]["image"], want[1]["image"], rtol=1e-9)


@pytest.mark.parametrize(("name", "micro"), [("sigmoid", 1), ("coca", 2), *rest(("sigmoid", 4), ("coca", 1))])
def test_nothing_valid_is_a_zero_gradient(name, micro, towers, rng):
    params, batch = towers.make(rng)
    batch["mask"][:] = False
    (value, metrics), grads = compiled(name, towers.apply, micro)(params, batch)
    assert np.isnan(value)
    for mean in (m for k, m in metrics.items() if k not in ("scale", "bias")):
        assert mean.count == 0 and mean.total == 0  # adds nothing to other batches' means
    assert all(np.array_equal(g, np.zeros_like(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("micro", [2, *rest((1,))])
def test_a_broken_temperature_shows(micro, towers, rng):
    params, batch = towers.make(rng)
    params["logit_scale"] = np.float32("nan")
    (value, _), grads = compiled("softmax", towers.apply, micro)(params, batch)
    assert np.isnan(value) and all(np.isnan(grads[k]).any() for k in ("image", "text", "logit_scale"))


def test_slices_are_one_after_the_other(towers):
    """Both passes are loops: the memory of the towers is that of one slice."""
    params, batch = towers.make(np.random.default_rng(0))
    text = compiled("softmax", towers.apply, 8).lower(params, batch).as_text()
    assert text.count("stablehlo.while") >= 2


def test_the_first_pass_leaves_the_decoder_out(towers, rng):
    """The map to the vocabulary appears in the second pass only: logits, again, and two gradients."""
    params, batch = towers.make(rng)
    run = jax.jit(lambda p, b: CoCa().value_and_grad(towers.apply, p, b, RNGS, 4))
    text = run.lower(params, batch).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line and f",{towers.words}]" in line.split(" dot(")[0]]
    assert 1 <= len(products) <= 3, products


def test_several_captions_take_the_first(towers, rng):
    params, batch = towers.make(rng)
    several = {**batch, "text": np.stack([batch["text"], batch["text"][::-1]], 1)}
    run = jax.jit(lambda p, b: OBJECTIVES["softmax"](towers.silent, p, b, {}, train=False)[0])
    np.testing.assert_array_equal(run(params, batch), run(params, several))


def test_bad_batches_are_sentences(towers, rng):
    params, batch = towers.make(rng)
    one = {k: v[:1] for k, v in batch.items()}
    objective = OBJECTIVES["softmax"]
    with pytest.raises(UserError, match="the batch is a single one; set batch_size=2"):
        objective.value_and_grad(towers.apply, params, one, RNGS, 1)
    with pytest.raises(UserError, match="the batch is a single one"):
        objective(towers.apply, params, one, RNGS, train=True)
    with pytest.raises(UserError, match=r"set data\.text"):
        objective(towers.apply, params, {k: v for k, v in batch.items() if k != "text"}, RNGS, train=True)


def test_mean_of_keeps_the_type_and_skips_nan():
    with jax.enable_x64(True):
        mean = pairs.mean_of(jnp.array([[1.0, jnp.nan], [2.0, 6.0]]), np.array([[1, 0], [1, 1]], bool))
        assert mean.total == 9 and mean.count == 3 and mean.total.dtype == "float64"
