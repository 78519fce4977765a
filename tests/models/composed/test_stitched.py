"""Stitchable networks: how many forms, anchors that are themselves, a stitch of equal parts that changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models import Stitched, describe
from vit_jax.models.composed.stitched import Route, routes
from vit_jax.types import UserError

SMALL = {"name": "vit", "patch": 4, "width": 8, "depth": 3, "heads": 2, "mlp_dim": 12}
WIDE = {**SMALL, "width": 16, "heads": 4}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)


def drawn(model, image, seed=0):
    """Random parameters of every kind."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), nn.meta.unbox(shapes))


def test_how_many_there_are():
    assert len(routes(3, 12, 2)) == 71 and len(routes(2, 12, 1)) == 14  # with three anchors of 12 blocks as published
    for anchors, depth, kernel in ((2, 5, 2), (3, 4, 3), (2, 3, 3)):
        found = routes(anchors, depth, kernel)
        assert len(set(found)) == len(found)
        for start in range(anchors - 1):
            windows = [set(range(w, w + kernel)) for w in range(depth - kernel + 1)]
            near = {(i, j) for i in range(depth) for j in range(depth) if any({i, j} <= w for w in windows)}
            mine = [r for r in found if r.start == start and r.front is not None]
            assert {(r.front, r.back) for r in mine} == near
            assert all({r.front, r.back} <= windows[r.window] for r in mine)
            assert all(r.window == 0 or not {r.front, r.back} <= windows[r.window - 1] for r in mine)
    assert routes(2, 2, 2) == (Route(0), *(Route(0, i, j) for i in (1, 0) for j in (1, 0)), Route(1))


@pytest.fixture(scope="module")
def net(image):
    model = models.create("stitched", first=SMALL, second=WIDE, num_classes=5)
    return model, drawn(model, image)


@pytest.mark.thorough
def test_anchors_alone_are_themselves(net, image):
    model, params = net
    forms = list(model.forms().values())
    assert len(forms) == 2 + 3 * 3 - 2
    run = jax.jit(lambda m, p: m.apply({"params": p}, image), static_argnums=0)
    for form, name in ((forms[-1], "first"), (forms[0], "second")):
        alone = models.create(**{**(SMALL if name == "first" else WIDE), "num_classes": 5})
        np.testing.assert_array_equal(run(form, params), run(alone, params[name]))
    assert [form.stitch for form in forms] == [*reversed(range(len(forms)))]
    np.testing.assert_array_equal(run(model, params), run(forms[0], params))


@pytest.mark.thorough
def test_only_what_is_on_the_way_gets_a_gradient(net, image):
    model, params = net
    i = model.routes.index(Route(0, 1, 2, 1))
    form = model.clone(stitch=i)
    loss = lambda p: jnp.sum(jnp.sin(form.apply({"params": p}, image, train=True)))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    moved = {"/".join(k.key for k in path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if np.any(g)}
    parts = {"/".join(path.split("/")[: 3 if "encoder" in path else 2]) for path in moved}
    assert parts == {
        "first/cls", "first/patch", "first/position", "first/encoder/block_0", "first/encoder/block_1",
        "stitches_first/map_1", "second/encoder/block_2", "second/encoder/norm", "second/head",
    }  # fmt: skip


def test_a_stitch_between_equal_anchors_changes_nothing(image):
    anchor = {**SMALL, "pool": "gap"}
    model = models.create("stitched", first=anchor, second=anchor, num_classes=5)
    params = drawn(model, image)
    same = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    params |= {"second": params["first"], "stitches_first": {f"map_{i}": same for i in range(2)}}
    want = jax.jit(lambda p: models.create(**anchor, num_classes=5).apply({"params": p}, image))(params["first"])
    for scan in (False, True):
        number = model.routes.index(Route(0, 0, 1))
        form = models.replace_in_towers(model.clone(stitch=number), scan=scan)
        np.testing.assert_allclose(jax.jit(lambda p, m=form: m.apply({"params": p}, image))(params), want, atol=1e-5)


@pytest.mark.thorough
def test_parameters_say_what_they_are(net):
    model, params = net
    roles = model.roles(params)
    one = roles["stitches_first"]["map_0"]["kernel"]
    assert (one.part, one.kind, one.new) == ("head", "kernel", True)
    assert roles["first"]["encoder"]["block_0"]["mlp"]["mlp_in"]["kernel"].above == 3


def test_it_is_plain_data_and_back():
    model = models.create("stitched", first=SMALL, second=WIDE, third={**WIDE, "width": 32}, num_classes=7, stitch=3)
    plain = describe.describe(model)
    again = models.create(**plain)
    assert isinstance(again, Stitched) and again == model and again.third.width == 32
    assert len(model.anchors) == 3 and len(model.routes) == 3 + 2 * 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"second": {**WIDE, "depth": 4}}, "the first has depth=3, the second depth=4; take ViTs that differ in width"),
        ({"third": {**WIDE, "patch": 2, "pool": "gap"}}, "pool='cls', the third patch=2, pool='gap'"),
        ({"second": {**WIDE, "reduce": "merge(1)"}}, "set their reduce=None"),
        ({"stitch": 9}, "stitch=9 is no form of these anchors; the last is 8"),
    ],
)
def test_what_cannot_be_stitched(image, fields, words):
    with pytest.raises(UserError, match=words):
        model = models.create("stitched", **{"first": SMALL, "second": WIDE, **fields})
        jax.eval_shape(model.init, jax.random.key(0), image)


def test_a_step_trains_one_of_them(net, image):
    with pytest.raises(UserError, match="set objective='drawn"):
        jax.eval_shape(lambda p: net[0].apply({"params": p}, image, train=True), net[1])
