"""MobileNets against NumPy in float64, with running statistics and the batch's; published sizes."""

from __future__ import annotations

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.outputs import both
from vit_jax import architectures, models
from vit_jax.architectures import eights
from vit_jax.trees import flat
from vit_jax.types import UserError

COUNTS = {
    "mobilenetv2_035": 1_677_128,
    "mobilenetv2_050": 1_968_680,
    "mobilenetv2_075": 2_636_424,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv2_140": 6_108_776,
    "mobilenetv2_110d": 4_516_520,
    "mobilenetv2_120d": 5_831_144,
    "mobilenetv3_large_075": 3_993_528,
    "mobilenetv3_large_100": 5_483_032,
    "mobilenetv3_small_050": 1_593_224,
    "mobilenetv3_small_075": 2_041_872,
    "mobilenetv3_small_100": 2_542_856,
}
"""With 1,000 classes, as timm has them."""


def counted(stem_width, widths, hidden, kernels, excite, last_width, head_width, classes=1000, **_):
    """A norm has two parameters a channel; maps of averages, and to classes, have biases."""
    n, before = 27 * stem_width + 2 * stem_width, stem_width
    for width, row, kernel, squeezed in zip(widths, hidden, kernels, excite, strict=True):
        for h in row:
            n += (before * h + 2 * h if h != before else 0) + kernel**2 * h + 2 * h + h * width + 2 * width
            n += 2 * h * eights(h / 4) + eights(h / 4) + h if squeezed else 0
            before = width
    n += before * last_width + 2 * last_width
    n += (last_width + 1) * head_width if head_width else 0
    return n + ((head_width or last_width) + 1) * classes


def test_sizes_are_the_published_ones():
    assert {name: counted(**fields) for name, fields in architectures.MOBILENET.items()} == COUNTS
    assert [eights(x) for x in (4, 12, 11.2, 18, 88.08, 0)] == [8, 16, 16, 24, 88, 8]


def size(model):
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(32))
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_whole_models_are_counted_alike(name, timm):
    theirs = timm.create_model(name, device="meta").parameters()
    assert size(models.create(name)) == COUNTS[name] == sum(p.numel() for p in theirs)


CASES = {
    "v3": {
        "stem_width": 4, "widths": (4, 8), "hidden": ((4,), (12, 20)), "kernels": (3, 5), "strides": (1, 2),
        "excite": (False, True), "activations": ("relu", "hard_swish"), "last_width": 10, "head_width": 6,
    },
    "v2": {
        "stem_width": 6, "widths": (4, 4), "hidden": ((6,), (9, 8)), "kernels": (3, 3), "strides": (2, 1),
        "excite": (True, False), "activations": ("relu6", "relu6"), "activation": "relu6", "last_width": 7,
        "head_width": None, "stem_stride": 1,
    },
}  # fmt: skip


@functools.cache
def made(case):
    """A model and its variables, drawn so that every one of them counts."""
    model = models.create("mobilenet", num_classes=3, norm_epsilon=0.01, **CASES[case])
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *model.inputs(16)))
    rng = np.random.default_rng(1)

    def draw(path, s):
        x = rng.standard_normal(s.shape) * 0.6
        return jnp.asarray(np.exp(x) if path[-1].key == "var" else x + (path[-1].key == "scale"), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_counted(case):
    assert sum(x.size for x in jax.tree.leaves(made(case)[1]["params"])) == counted(**CASES[case], classes=3)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def conv(x, kernel, stride):
    """Of ``[K, K, C, D]``, or of ``[K, K, 1, C]`` channel by channel."""
    k, (h, w) = len(kernel), x.shape[1:3]
    how = "bijc,ijoc->bc" if kernel.shape[2] == 1 and x.shape[-1] > 1 else "bijc,ijcd->bd"
    wide = np.pad(x, [(0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)])
    rows = [
        [np.einsum(how, wide[:, i : i + k, j : j + k], kernel) for j in range(0, w, stride)]
        for i in range(0, h, stride)
    ]
    return np.array(rows).transpose(2, 0, 1, 3)


def reference(variables, image, model, batch):
    """Tokens, logits, and the statistics that follow those of the batch, in float64."""
    p, stats = variables["params"], dict(flat(variables["batch_stats"]))

    def norm(x, at, activation=None):
        scale, bias = (flat(p)[f"{at}/{name}"] for name in ("scale", "bias"))
        mean, var = stats[f"{at}/mean"], stats[f"{at}/var"]
        if batch:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            stats[f"{at}/mean"] = 0.9 * stats[f"{at}/mean"] + 0.1 * mean
            stats[f"{at}/var"] = 0.9 * stats[f"{at}/var"] + 0.1 * var
        y = (x - mean) / np.sqrt(var + model.norm_epsilon) * scale + bias
        return ACTIVATIONS[activation](y) if activation else y

    x = norm(conv(image, p["stem"]["kernel"], model.stem_stride), "norm_stem", model.activation)
    for i, j in itertools.chain(*([(i, j) for j in range(len(row))] for i, row in enumerate(model.hidden))):
        at, stride, y = f"stage_{i}/block_{j}", 1 if j else model.strides[i], x
        q = p[f"stage_{i}"][f"block_{j}"]
        if "expand" in q:
            y = norm(y @ q["expand"]["kernel"], f"{at}/norm_expand", model.activations[i])
        y = norm(conv(y, q["conv"]["kernel"], stride), f"{at}/norm_conv", model.activations[i])
        if "excite" in q:
            low, high = q["excite"]["reduce"], q["excite"]["expand"]
            h = np.maximum(y.mean((1, 2)) @ low["kernel"] + low["bias"], 0)
            y = y * (np.clip(h @ high["kernel"] + high["bias"] + 3, 0, 6) / 6)[:, None, None]
        y = norm(y @ q["project"]["kernel"], f"{at}/norm_project")
        x = x + y if stride == 1 and x.shape == y.shape else y
    x = norm(x @ p["last"]["kernel"], "norm_last", model.activation)
    tokens = x.reshape(len(x), -1, x.shape[-1])
    pooled = tokens.mean(1)
    if model.head_width:
        pooled = ACTIVATIONS[model.activation](pooled @ p["map"]["kernel"] + p["map"]["bias"])
    return tokens, pooled @ p["head"]["kernel"] + p["head"]["bias"], stats


def checked(case, rng, batch):
    """On sides that no stride divides; what changes the statistics, and what is changed by them."""
    model, variables = made(case)
    image = rng.standard_normal((3, 9, 6, 3))
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    tokens, logits, stats = reference(wide, image, model, batch)
    apply = jax.jit(functools.partial(model.apply, train=batch, method=both, mutable="batch_stats"))
    (found, got), after = apply(variables, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(found.tokens, tokens, atol=2e-5 * np.abs(tokens).max())
    np.testing.assert_allclose(got, logits, atol=2e-5 * np.abs(logits).max())
    after = flat(after["batch_stats"])
    assert after.keys() == stats.keys()
    for path, want in stats.items():
        np.testing.assert_allclose(after[path], want, atol=1e-5 * max(1, np.abs(want).max()), err_msg=path)
    return np.asarray(got)


@pytest.mark.parametrize("case", rest_slow(CASES, "v3"))
def test_equals_the_papers_in_float64(rng, case):
    checked(case, rng, batch=False)


@pytest.mark.parametrize("case", rest_slow(CASES, "v2"))
def test_trains_with_statistics_of_the_batch(rng, case):
    checked(case, rng, batch=True)


@pytest.mark.thorough
def test_frozen_statistics_are_those_that_came(rng):
    model, variables = made("v3")
    image = jnp.asarray(rng.standard_normal((3, 8, 8, 3)), jnp.float32)
    frozen = model.clone(norm="frozen")
    got, after = frozen.apply(variables, image, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(got, model.apply(variables, image))
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_remat_changes_nothing(rng, case):
    """Neither gradients nor statistics, which a forward pass leaves once."""
    model, variables = made(case)
    model = model.clone(drop_path=0.5)
    image, rngs = jnp.asarray(rng.standard_normal((3, 8, 6, 3)), jnp.float32), {"dropout": jax.random.key(3)}

    def run(m):
        def loss(p):
            v = {**variables, "params": p}
            y, after = m.apply(v, image, train=True, rngs=rngs, mutable="batch_stats")
            return jnp.sum(y**2), after

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    again, want = run(model.clone(remat="full")), run(model)
    largest = max(float(jnp.max(jnp.abs(b))) for b in jax.tree.leaves(want))  # what a norm follows has zero gradients
    for a, b in zip(*map(jax.tree.leaves, (again, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * largest)


def test_roles():
    model, variables = made("v3")
    roles = model.roles(variables["params"])
    assert roles["stem"]["kernel"].above == roles["norm_stem"]["scale"].above == 4
    found = [roles[f"stage_{i}"][f"block_{j}"]["conv"]["kernel"].above for i, j in ((0, 0), (1, 0), (1, 1))]
    assert found == [3, 2, 1] and roles["stage_1"]["block_0"]["excite"]["reduce"]["kernel"].kind == "kernel"
    for name in ("last", "norm_last", "map", "head"):
        assert {(r.part, r.above, r.new) for r in jax.tree.leaves(roles[name])} == {("head", 0, name == "head")}
    assert None not in {r.kind for r in jax.tree.leaves(roles)}


def test_mistakes_are_said():
    with pytest.raises(UserError, match=r"strides=\(1,\) is of 1 stages and widths=\(4, 8\) of 2; give both"):
        models.create("mobilenet", **{**CASES["v3"], "strides": (1,)})
    with pytest.raises(UserError, match="norm='layer'"):
        models.create("mobilenet", norm="layer")
