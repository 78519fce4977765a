"""Where a run starts, and how parameters of another model are fitted in."""

import chex
import jax
import numpy as np
import pytest

from vit_jax.checkpoint import Checkpoints
from vit_jax.layers.embed import resize_positions
from vit_jax.train import start
from vit_jax.train.start import adapt
from vit_jax.types import UserError


def params(rng, *, classes=10, tokens=17, width=8, **changes):
    """Like a ViT's: cls token, positions, a block, a head."""
    shapes = {
        "cls": (1, 1, width), "position": {"embedding": (1, tokens, width)}, "patch": {"kernel": (4, 4, 3, width)},
        "encoder": {"block_0": {"mlp_in": {"kernel": (width, 16)}}},
        "head": {"kernel": (width, classes), "bias": (classes,)},
    } | changes  # fmt: skip
    shapes = {k: v for k, v in shapes.items() if v is not None}
    return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))


def test_equal_models_are_taken_as_they_are(rng):
    a, b = params(rng), params(rng)
    found, notes = adapt(a, b, name="x")
    chex.assert_trees_all_equal(found, a)
    assert notes == []


def test_another_number_of_classes(rng):
    a, b = params(rng, classes=10), params(rng, classes=3)
    found, notes = adapt(a, b, name="x")
    chex.assert_trees_all_equal(found, {**a, "head": b["head"]})
    assert sorted(notes) == ["head/bias is new (10 there)", "head/kernel is new (8x10 there)"]


def test_heads_may_be_missing_or_left_over(rng):
    a, b = params(rng, head=None, pre_logits={"kernel": (8, 8)}), params(rng)
    found, notes = adapt(a, b, name="x")
    chex.assert_trees_all_equal(found["head"], b["head"])
    assert sorted(notes) == [
        "head/bias is new (absent there)",
        "head/kernel is new (absent there)",
        "pre_logits/kernel is not used",
    ]


@pytest.mark.parametrize(("old", "new", "prefix"), [(4, 6, 1), (4, 2, 1), (3, 5, 0)])
def test_another_image_size(rng, old, new, prefix):
    a, b = params(rng, tokens=old * old + prefix), params(rng, tokens=new * new + prefix)
    found, notes = adapt(a, b, name="x")
    expected = resize_positions(a["position"]["embedding"], (old, old), (new, new), prefix)
    chex.assert_trees_all_equal(found, {**a, "position": {"embedding": np.asarray(expected)}})
    np.testing.assert_array_equal(found["position"]["embedding"][:, :prefix], a["position"]["embedding"][:, :prefix])
    assert notes == [f"position/embedding is resized from {old}x{old} to {new}x{new}"]


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        (
            {"encoder": {"block_0": {"mlp_inn": {"kernel": (8, 16)}}}}, {},
            "x does not fit the model: encoder/block_0/mlp_in/kernel is missing; did you mean "
            "'encoder/block_0/mlp_inn/kernel'?; encoder/block_0/mlp_inn/kernel is left over.",
        ),
        ({"extra": {"scale": (3,)}}, {}, "x does not fit the model: extra/scale is left over."),
        ({}, {"extra": {"scale": (3,)}}, "extra/scale is missing"),
        ({"patch": {"kernel": (2, 2, 3, 8)}}, {}, "patch/kernel has the shape (2, 2, 3, 8), not (4, 4, 3, 8)"),
        ({"position": {"embedding": (1, 17, 9)}}, {}, "position/embedding has the shape (1, 17, 9), not (1, 17, 8)"),
        ({"more": {str(i): (1,) for i in range(5)}}, {}, "more/2 is left over (and 2 more)."),
        ({"position": {"embedding": (1, 16, 8)}}, {}, "has 0 prefix tokens there and 1 here; use the same pool"),
        ({"position": {"embedding": (1, 12, 8)}}, {}, "12 positions are no square grid, so they cannot be resized"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(rng, there, here, text):
    with pytest.raises(UserError) as e:
        adapt(params(rng, **there), params(rng, **here), name="x")
    assert text in str(e.value)


def test_items_and_back(tiny, one_device):
    shapes = one_device(tiny()).shapes
    found = start.items(shapes)
    assert set(found) == {"params", "opt_state", "ema"} and "step" in found["opt_state"]
    assert start.from_items(found, shapes) == shapes
    without = one_device(tiny(ema=None)).shapes
    assert set(start.items(without)) == {"params", "opt_state"}
    assert start.from_items(start.items(without), without) == without


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another run's folder: filled by the first test that needs it, since ``tiny`` lives for one test."""
    return tmp_path_factory.mktemp("other") / "run"


@pytest.fixture
def built(tiny, one_device, other):
    """A setup, its state with every leaf replaced by noise, and a folder with that state at step 5."""
    setup = one_device(tiny())
    noise = np.random.default_rng(0)
    state = jax.tree.map(lambda x: noise.normal(size=x.shape).astype(x.dtype), setup.shapes)
    state = jax.device_put(state.replace(step=np.int32(5)), setup.shardings)
    if not other.exists():
        checkpoints = Checkpoints(other)
        checkpoints.save(5, start.items(state), start.meta(setup, tiny(), {}), {})
        checkpoints.close()
    return setup, state, other


def test_order_of_starts(tiny, one_device, built, workdir):
    """resume > resume_from > init > scratch."""
    setup, state, other = built
    fresh, said = start.start(setup, workdir)
    assert said == "starts from scratch" and int(fresh.step) == 0

    init = one_device(tiny(init=str(other)))
    found, said = start.start(init, workdir)
    assert said == f"starts from {other}/checkpoints/5: every parameter taken as it is"
    assert int(found.step) == 0
    chex.assert_trees_all_equal(found.params, state.ema)  # the average is what was good
    chex.assert_trees_all_equal(found.opt_state, fresh.opt_state)

    found, said = start.start(one_device(tiny(resume_from=str(other))), workdir)
    assert said == f"continues {other}/checkpoints/5"
    chex.assert_trees_all_equal(found, state)

    found, said = start.start(init, other)  # its own checkpoints come first
    assert said == "resumed at step 5"
    chex.assert_trees_all_equal(found, state)
    assert jax.tree.structure(found) == jax.tree.structure(setup.shapes)


def test_init_with_other_classes_and_size(tiny, one_device, built, workdir):
    _, state, other = built
    raw = tiny(init=str(other), data={"path": "fake:80x16x7", "canvas": 16}, augment={"size": 16}, ema=None)
    found, said = start.start(one_device(raw), workdir)
    assert "position/embedding is resized from 2x2 to 4x4" in said and "head/kernel is new (16x4 there)" in said
    assert found.params["head"]["kernel"].shape == (16, 7) and found.ema is None
    expected = resize_positions(state.ema["position"]["embedding"], (2, 2), (4, 4), 0)
    np.testing.assert_array_equal(found.params["position"]["embedding"], expected)


def test_evaluation_parameters(tiny, one_device, built):
    _, state, other = built
    found, folder = start.eval_params(one_device(tiny(mesh={"replica": 2, "fsdp": 2, "tensor": 2}), n=8), other)
    assert folder == other / "checkpoints" / "5"
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state.ema))
    with pytest.raises(UserError, match="cannot be read"):
        start.eval_params(one_device(tiny(model={"width": 32})), other)


def test_a_missing_source(tiny, one_device, workdir):
    for key in ("init", "resume_from"):
        with pytest.raises(UserError, match="no checkpoint at '/no/run'"):
            start.start(one_device(tiny(**{key: "/no/run"})), workdir)


def test_a_head_of_other_classes_is_not_kept(rng):
    a, b = params(rng), params(rng)
    found, notes = adapt(a, b, name="x", new_head=True)
    assert notes == ["head/bias is new (of other classes there)", "head/kernel is new (of other classes there)"]
    chex.assert_trees_all_equal(found["head"], b["head"])
