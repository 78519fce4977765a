"""How parameters of another model are fitted in."""

import chex
import jax
import ml_dtypes
import numpy as np
import pytest

from vit_jax.layers.embed import resize_patches, resize_positions
from vit_jax.models.roles import roles
from vit_jax.train import adapt as module
from vit_jax.trees import flat
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


def adapt(loaded, fresh, **options):
    """With the roles that the usual names tell."""
    new = {path for tree in (loaded, fresh) for path, role in flat(roles(tree)).items() if role.new}
    return module.adapt(loaded, fresh, new=new, **options)


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


RESIZED = [
    ("bilinear", "bilinear"),
    ("bicubic", "bicubic"),
    ("bicubic_plain", "bicubic"),
    ("bilinear_corners", "bilinear_plain"),
]


@pytest.mark.parametrize(("method", "patches"), RESIZED)
def test_another_patch_size_and_way_to_resize(rng, method, patches):
    """Those of big_vision, whose positions are resized between corners, are not antialiased."""
    a, b = params(rng, tokens=5), params(rng, tokens=10, patch={"kernel": (6, 6, 3, 8)})
    found, notes = adapt(a, b, name="x", **({} if method == "bilinear" else {"resize": method}))
    kernel = resize_patches(a["patch"]["kernel"], 6, patches)
    positions = resize_positions(a["position"]["embedding"], (2, 2), (3, 3), 1, method)
    chex.assert_trees_all_equal(found, {**a, "patch": {"kernel": kernel}, "position": {"embedding": positions}})
    assert notes == [
        "patch/kernel is resized from 4x4 to 6x6 (pseudo-inverse)",
        "position/embedding is resized from 2x2 to 3x3",
    ]


def test_an_unknown_way_to_resize_is_refused_even_where_nothing_is_resized(rng):
    with pytest.raises(UserError, match="unknown resize method 'bicubik'; did you mean 'bicubic'"):
        adapt(params(rng), params(rng), name="x", resize="bicubik")


@pytest.mark.parametrize("new", [4, 5])
def test_a_model_without_cls_leaves_its_position_out(rng, new):
    a, b = params(rng, tokens=17), params(rng, tokens=new * new, cls=None)
    found, notes = adapt(a, b, name="x")
    positions = resize_positions(a["position"]["embedding"][:, 1:], (4, 4), (new, new), 0)
    chex.assert_trees_all_equal(found, {**{k: a[k] for k in b}, "position": {"embedding": positions}})
    resized = "" if new == 4 else " and is resized from 4x4 to 5x5"
    assert notes == [f"position/embedding loses that of cls{resized}", "cls is not used"]


@pytest.mark.parametrize("prefix", [0, 1])
def test_of_a_distilled_model_the_position_of_the_class_token_stays(rng, prefix):
    """The second class token's goes, whose place is behind the first's; without any both do."""
    b = params(rng, tokens=prefix + 16) if prefix else params(rng, tokens=16, cls=None)
    a = {**params(rng, tokens=18), "dist": np.ones((1, 1, 8), np.float32)}
    found, notes = adapt(a, b, name="x")
    rows = a["position"]["embedding"]
    np.testing.assert_array_equal(found["position"]["embedding"], np.concatenate([rows[:, :prefix], rows[:, 2:]], 1))
    lost = "dist" if prefix else "cls and dist"
    assert f"position/embedding loses that of {lost}" in notes and "dist is not used" in notes


def test_low_precision_is_widened_with_one_note_per_type(rng):
    a, b = params(rng), params(rng)
    a["encoder"] = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), a["encoder"])
    a["head"] = jax.tree.map(lambda x: jax.numpy.asarray(x, "float16"), a["head"])
    found, notes = adapt(a, b, name="x")
    assert notes == [
        "parameters are converted from bfloat16 to float32 (1 of 6)",
        "parameters are converted from float16 to float32 (2 of 6)",
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(found, b)
    chex.assert_trees_all_equal(found, jax.tree.map(lambda x: np.asarray(x).astype(np.float32), a))


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
        ({"patch": {"kernel": (2, 2, 1, 8)}}, {}, "patch/kernel has the shape (2, 2, 1, 8), not (4, 4, 3, 8)"),
        ({"patch": {"kernel": (48, 8)}}, {}, "patch/kernel has the shape (48, 8), not (4, 4, 3, 8)"),
        ({"position": {"embedding": (1, 17, 9)}}, {}, "position/embedding has the shape (1, 17, 9), not (1, 17, 8)"),
        ({"more": {str(i): (1,) for i in range(5)}}, {}, "more/2 is left over (and 2 more)."),
        ({"mixed": {"tokens": {"mlp_in": {"kernel": (9, 4)}}}}, {"mixed": {"tokens": {"mlp_in": {"kernel": (16, 4)}}}},
         "mixed/tokens/mlp_in/kernel mixes 9 tokens there and 16 here, and weights across tokens cannot be resized; "
         "choose an image size of 3 times the patch size."),
        ({"position": {"embedding": (1, 16, 8)}}, {}, "has 0 prefix tokens there and 1 here; use the same pool"),
        ({"position": {"embedding": (1, 12, 8)}}, {}, "12 positions are no square grid, so they cannot be resized"),
        (
            {"text_tower": {"position": {"embedding": (1, 16, 8)}}},
            {"text_tower": {"position": {"embedding": (1, 9, 8)}}},
            "text_tower/position/embedding is for texts of 16 tokens there and 9 here (a cls counts as one), and "
            "positions of texts are not resized; set data.text.length to that of the weights",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(rng, there, here, text):
    with pytest.raises(UserError) as e:
        adapt(params(rng, **there), params(rng, **here), name="x")
    assert text in str(e.value)


def test_a_head_of_other_classes_is_not_kept(rng):
    a, b = params(rng), params(rng)
    found, notes = adapt(a, b, name="x", new_head=True)
    assert notes == ["head/bias is new (of other classes there)", "head/kernel is new (of other classes there)"]
    chex.assert_trees_all_equal(found["head"], b["head"])


def test_adapters_may_be_new(rng):
    a = params(rng)
    b = {
        **params(rng),
        "encoder": {"block_0": {"adapter_mlp": {"up": np.ones((2, 8), np.float32)}, **a["encoder"]["block_0"]}},
    }
    found, notes = adapt(a, b, name="x")
    assert notes == ["encoder/block_0/adapter_mlp/up is new (absent there)"]
    chex.assert_trees_all_equal(found["encoder"], b["encoder"])
    with pytest.raises(UserError, match="encoder/block_0/adapter_mlp/up is missing"):
        module.adapt(a, b, name="x")


def test_the_norm_moves_behind_the_pooling_and_back(rng):
    """A masked autoencoder has it after the blocks; fine-tuned, behind the average."""
    after = params(rng, encoder={"norm": {"scale": (8,), "bias": (8,)}})
    behind = params(rng, encoder={"block_0": {"x": {"bias": (3,)}}}, norm_pool={"scale": (8,), "bias": (8,)})
    del behind["encoder"]
    found, notes = adapt(after, behind, name="x")
    np.testing.assert_array_equal(found["norm_pool"]["scale"], after["encoder"]["norm"]["scale"])
    assert notes == ["norm_pool/* are what encoder/norm/* are there"]
    found, notes = adapt(behind, after, name="x")
    np.testing.assert_array_equal(found["encoder"]["norm"]["bias"], behind["norm_pool"]["bias"])
    assert notes == ["encoder/norm/* are what norm_pool/* are there"]
    assert adapt(after, after, name="x")[1] == [] == adapt(behind, behind, name="x")[1]
