"""Token reduction against the papers' formulas in float64: as functions, and in whole ViTs."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax as vj
from vit_jax import config, models
from vit_jax.layers.block import Block
from vit_jax.layers.hooks import Attended, Place, Reducer, Tokens
from vit_jax.layers.tokens.reduce import REDUCERS, Attentive, Merge, Random, ReducerSpec, attentive, merge
from vit_jax.models import cost
from vit_jax.models.describe import describe, structured
from vit_jax.types import UsageError, UserError

FIELDS = {"num_classes": 3, "patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24}
IMAGE = (2, 12, 20, 3)
"""15 patches."""


def merged(x, size, keys, r, prefix):
    """One image: ``x [N, D]``, ``size [N]``, ``keys [N, K, E]``; sections 3.1 and 3.2 of the paper, pair by pair."""
    n, metric = len(x), keys.mean(1)
    metric = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
    evens, odds = ([i for i in range(start, n, 2) if i >= prefix] for start in (0, 1))
    near = {a: max(odds, key=lambda b: metric[a] @ metric[b]) for a in evens}
    gone = sorted(evens, key=lambda a: -(metric[a] @ metric[near[a]]))[: min(r, (n - prefix) // 2)]
    mass, total = x * size[:, None], size.copy()
    for a in gone:
        mass[near[a]] += x[a] * size[a]
        total[near[a]] += size[a]
    order = [*range(prefix), *(a for a in evens if a not in gone), *odds]
    return (mass / total[:, None])[order], total[order]


def attended(x, weights, keep, prefix, fuse):
    """One image: ``weights [K, N, N]``; section 3.1 and equation 4."""
    score = weights[:, 0].mean(0)
    order = sorted(range(prefix, len(x)), key=lambda i: -score[i])
    count = math.ceil(keep * len(order))
    kept, rest = order[:count], order[count:]
    fused = [sum(score[i] * x[i] for i in rest)] if fuse and rest else []
    return np.stack([*x[:prefix], *x[kept], *fused]), np.ones(prefix + count + len(fused))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def vit(model, params, image, reduce):
    """Logits ``[B, C]`` of a ViT by the definitions in float64, ``reduce`` between attention and MLP of its blocks."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)

    def linear(p, x):
        return x @ p["kernel"].reshape(x.shape[-1], -1) + p["bias"]

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon) * p["scale"] + p["bias"]

    def one(image):
        h, w, _ = (s // model.patch for s in image.shape)
        x = image.reshape(h, model.patch, w, model.patch, 3).swapaxes(1, 2).reshape(h * w, -1)
        x = linear(p["patch"], x)
        x = np.concatenate([*([p["cls"][0]] if "cls" in p else []), x]) + p["position"]["embedding"][0]
        if "registers" in p:
            x = np.concatenate([x[: -h * w], p["registers"][0], x[-h * w :]])
        prefix, size = len(x) - h * w, np.ones(len(x))
        for i in range(model.depth):
            block = p["encoder"][f"block_{i}"]
            qkv = linear(block["attention"]["qkv"], norm(block["norm_attention"], x))
            q, k, v = np.moveaxis(qkv.reshape(len(x), model.heads, 3, -1), 2, 0)
            proportional = getattr(model.reduce, "proportional", False)
            logits = np.einsum("nke,mke->knm", q, k) / math.sqrt(q.shape[-1])
            weights = softmax(logits + (np.log(size) if proportional else 0))
            x = x + linear(block["attention"]["out"], np.einsum("knm,mke->nke", weights, v).reshape(len(x), -1))
            x, size = reduce(i, x, size, k, weights, prefix)
            y = linear(block["mlp"]["mlp_in"], norm(block["norm_mlp"], x))
            x = x + linear(block["mlp"]["mlp_out"], y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2)
        x = norm(p["encoder"]["norm"], x)
        gap = (x * size[:, None])[prefix:].sum(0) / size[prefix:].sum()
        pooled = {"cls": x[0], "gap": gap, "cls_gap": np.concatenate([x[0], gap])}[model.pool]
        return linear(p["head"], pooled)

    return np.stack([one(np.asarray(i, np.float64)) for i in image])


def filled(model, rng):
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *IMAGE[1:]))))["params"]
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) / s.shape[-1] ** 0.5, "float32"), shapes)


VITS = {
    "merge": dict(reduce="merge(3)", pool="gap", cls_token=True, registers=2),
    "attentive": dict(reduce="attentive(0.6, (0, 1))", registers=1),
    "falling": dict(reduce="merge(2, -0.5)", pool="gap"),
    "growing": dict(reduce="merge(3, 0.5)", pool="cls_gap"),
    "as it is": dict(reduce="merge(4, proportional=False)"),
    "left out": dict(reduce="attentive(0.3, 1, False)", pool="cls_gap"),
}


@pytest.mark.parametrize("case", [n if i < 2 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(VITS)])
def test_a_vit_equals_the_formulas(rng, case):
    model = models.create("vit", **FIELDS, **VITS[case])
    params, image = filled(model, rng), rng.standard_normal(IMAGE).astype("float32")
    rates = {"falling": [3, 1], "growing": [1, 5]}.get(case, [getattr(model.reduce, "r", 0)] * 2)

    def reduce(i, x, size, keys, weights, prefix):
        if isinstance(model.reduce, Merge):
            return merged(x, size, keys, rates[i], prefix)
        if i not in model.reduce.blocks:
            return x, size
        return attended(x, weights, model.reduce.keep, prefix, model.reduce.fuse)

    got = jax.jit(model.apply)({"params": params}, image)
    np.testing.assert_allclose(got, vit(model, params, image, reduce), atol=1e-4)


@pytest.mark.parametrize(("n", "prefix", "r"), [(17, 1, 5), (16, 0, 3), (12, 3, 99), (9, 2, 2), (4, 1, 1), (2, 1, 5)])
def test_merge_and_its_gradient(rng, n, prefix, r):
    x, keys = rng.standard_normal((2, n, 5)), rng.standard_normal((2, n, 3, 4))
    size, g = rng.integers(1, 4, (2, n)).astype("float32"), rng.standard_normal((2, n, 5))
    want = [merged(*one, r, prefix) for one in zip(x, size, keys, strict=True)]
    left = len(want[0][0])
    assert left == n - min(r, (n - prefix) // 2)

    @jax.jit
    def run(x):
        found = merge(
            Tokens(x, size), Attended(None, lambda: jnp.asarray(keys.sum(2), "float32"), None), r=r, prefix=prefix
        )
        return found.x, found

    _, pull, found = jax.vjp(run, jnp.asarray(x, jnp.float32), has_aux=True)
    np.testing.assert_allclose(found.x, [w[0] for w in want], atol=1e-5)
    np.testing.assert_array_equal(found.size, np.asarray([w[1] for w in want], "float32"))
    assert (found.size.sum(1) == size.sum(1)).all()
    if left < n:
        np.testing.assert_allclose(found.bias, np.log([w[1] for w in want]), rtol=1e-6)
    units = np.eye(n)  # what each becomes is linear in the tokens
    maps = [merged(units, s.astype("float64"), k, r, prefix)[0] for s, k in zip(size, keys, strict=True)]
    g = g[:, :left].astype("float32")
    np.testing.assert_allclose(pull(jnp.asarray(g))[0], np.einsum("bmn,bmd->bnd", maps, g), atol=1e-5)


@pytest.mark.parametrize("fuse", [True, False])
def test_attentive_and_its_gradient(rng, fuse):
    n, prefix, keep = 11, 2, 0.5
    x, weights = rng.standard_normal((2, n, 4)), softmax(rng.standard_normal((2, 3, n, n)))
    want = np.stack([attended(*one, keep, prefix, fuse)[0] for one in zip(x, weights, strict=True)])

    @jax.jit
    def run(x, weights):
        found = attentive(
            Tokens(x), Attended(None, None, lambda n: weights[:, :, :n]), keep=keep, prefix=prefix, fuse=fuse
        )
        assert found.size is None and found.bias is None
        return found.x

    args = jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32)
    got, pull = jax.vjp(run, *args)
    np.testing.assert_allclose(got, want, atol=1e-5)
    score = weights[:, :, 0].mean(1)
    there = np.sort(score[:, prefix:], axis=1)[:, ::-1]
    if not fuse:
        return
    sums = run(jnp.ones_like(args[0]), args[1])[:, -1, 0]  # kept, fused and in front: all of the attention of cls
    np.testing.assert_allclose(sums + there[:, :5].sum(1) + score[:, :prefix].sum(1), 1, atol=1e-6)
    g = np.zeros(got.shape, "float32")
    g[:, -1] = 1
    by_x, by_weights = pull(jnp.asarray(g))
    out = score < there[:, 4:5]
    out[:, :prefix] = False
    np.testing.assert_allclose(by_x, np.where(out, score, 0)[:, :, None] * np.ones(4), atol=1e-6)
    np.testing.assert_allclose(by_weights[:, 0, 0], np.where(out, x.sum(-1), 0) / 3, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_is_kept_bit_for_bit(rng, dtype):
    x = jnp.asarray(rng.standard_normal((2, 9, 4)), dtype)
    keys = jnp.asarray(rng.standard_normal((2, 9, 4)), "float32")
    seen = Attended(None, lambda: keys, None)
    rows = lambda y: {v.tobytes() for v in np.asarray(y).reshape(-1, 4)}  # noqa: E731
    one = merge(Tokens(x), seen, r=2, prefix=1)
    assert one.x.dtype == dtype and len(rows(one.x) - rows(x)) == int((one.size > 1).sum())
    drawn = Random(0.5).draw(x, 1, jax.random.key(0))
    assert rows(drawn) <= rows(x)


def test_those_that_reduce_nothing_are_the_plain_program():
    image = jnp.zeros(IMAGE)
    plain = models.create("vit", **FIELDS)
    params = jax.eval_shape(plain.init, jax.random.key(0), image)["params"]

    def text(model):
        return jax.jit(lambda p: model.apply({"params": p}, image)).lower(params).as_text()

    want = text(plain)
    for spec in ("merge(0)", "attentive(1.0, (0, 1))", "random(0.5)"):
        assert text(plain.clone(reduce=config.parse(ReducerSpec, spec))) == want, spec
    assert text(plain.clone(reduce=Merge(1))) != want


@pytest.mark.parametrize("pool", ["map", pytest.param("gap", marks=pytest.mark.slow)])
def test_equal_tokens_may_be_merged(rng, pool):
    """All pairs in the first block, none in the second: attention and pooling see each as two."""
    model = models.create("vit", **FIELDS, pool=pool, reduce=Merge(2, inflect=-1))
    params = filled(model, rng)
    twice = jnp.repeat(jnp.asarray(rng.standard_normal((2, 4, 16)), "float32"), 2, axis=1)

    def pooled(model):
        whole = nn.apply(lambda m, x: m.pooled(m.encode_tokens(x, False)), model)
        return jax.jit(whole)({"params": params}, twice)

    assert pooled(model).shape == (2, 16)
    np.testing.assert_allclose(pooled(model), pooled(model.clone(reduce=None)), atol=1e-5)


def test_tokens_of_a_tower_know_their_sizes():
    model = models.create("vit", **FIELDS, reduce="merge(3)", remat="full")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGE))
    found = jax.eval_shape(functools.partial(model.apply, method="features"), variables, jnp.zeros(IMAGE))
    assert found.tokens.shape == (2, 10, 16) and found.size.shape == (2, 10)
    fields = {"image_tower": {"name": "vit", **FIELDS, "reduce": "merge(3)"}, "pooling": "parallel"}
    coca = models.create("coca", **fields, text_tower={"depth": 1}, decoder={"depth": 1})
    inputs = jnp.zeros(IMAGE), jnp.zeros((2, 77), int)
    shapes, _ = jax.eval_shape(functools.partial(coca.init_with_output, jax.random.key(0)), *inputs)
    assert shapes.image.shape == (2, 512)
    assert models.create("clip_vit_b32", image_tower={"reduce": "merge(8)"}).image_tower.reduce == Merge(8)


def test_random_patches_in_training(rng):
    x = jnp.broadcast_to(jnp.arange(11.0)[None, :, None], (4, 11, 2))
    draw = jax.jit(lambda key: Random(0.5).draw(x, 1, key))
    one, other = (np.asarray(draw(jax.random.key(i)))[..., 0] for i in range(2))
    assert one.shape == (4, 6) and (one[:, 0] == 0).all() and (np.diff(one) > 0).all() and one.max() <= 10
    assert len({tuple(row) for row in (*one, *other)}) > 4
    assert Random(1.0).draw(x, 1, jax.random.key(0)) is x
    with pytest.raises(UserError, match=r"random\(0.05\) keeps none of 10 patches; give at least 0.1"):
        Random(0.05).draw(x, 1, jax.random.key(0))
    model = models.create("vit", **FIELDS, reduce="random(0.5)", scan=True)

    def tokens(train):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init_with_output(rngs, jnp.zeros(IMAGE), train=train, method="features")[0].tokens

    assert [jax.eval_shape(functools.partial(tokens, train)).shape[1] for train in (True, False)] == [8, 16]


def test_as_a_user_writes_them():
    assert config.parse(ReducerSpec, "merge(13)") == Merge(13)
    assert config.parse(ReducerSpec, "attentive(keep=0.5, blocks=(1, 2), fuse=False)") == Attentive(0.5, (1, 2), False)
    for cls in REDUCERS.values():
        assert issubclass(cls, Reducer)
    for reduce in (Merge(13), Attentive(0.5, (1,)), Random(0.25)):
        model = models.create("vit", **FIELDS, reduce=reduce)
        assert models.create(**describe(model)) == model
        assert config.parse(ReducerSpec, structured(model)["reduce"]) == reduce
    assert [Merge(8, 0.5)(Place(i, 5), name="").keywords["r"] for i in range(5)] == [4, 6, 8, 10, 12]
    assert Merge(2, -1)(Place(4, 5), name="") is None


class Turn:
    def __call__(self, *, name):
        raise NotImplementedError

    def coordinates(self, height, width):
        return None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reduce": "attentive(0.5)", "pool": "gap"}, "what the class token attends to, and this model has none"),
        ({"reduce": "attentive(0.5)"}, "attentive names block 3, and the last of 2 is 1"),
        ({"reduce": "merge(1)", "scan": True}, "set scan=False"),
        (
            {"reduce": "merge(1)", "rotary": Turn()},
            "places of its own, and rotary is for the whole grid; set reduce=None",
        ),
    ],
)
def test_models_that_cannot(fields, says):
    model = models.create("vit", **FIELDS, **fields)
    with pytest.raises(UserError, match=says):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGE)), jnp.zeros(IMAGE))


def test_wrong_values():
    for spec, says in (
        ("attentive(0)", r"keep=0.0 is not allowed"), ("random(1.5)", "keep=1.5"), ("merge(-1)", "r=-1"),
        ("merge(2, 2)", "inflect"), ("prune(2)", "prune"), ("merge", "missing key"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            models.create("vit", reduce=spec)
    with pytest.raises(UsageError, match="reduce"):  # a text needs all of its tokens
        models.create("clip_vit_b32", text_tower={"reduce": "merge(8)"})
    causal = Block(mlp_dim=8, heads=2, causal=True, reduce=functools.partial(Merge(1), Place(0, 1)))
    with pytest.raises(UserError, match="a causal mask needs all tokens"):
        jax.eval_shape(causal.init, jax.random.key(0), jnp.zeros((1, 4, 8)))


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "billion"), [(1.0, 4.6), (0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)])
def test_multiply_adds_are_those_of_the_paper(keep, billion):
    """Table 1 of EViT, of DeiT-S; FLOPs here count every operation, not the products alone."""
    model = models.create("vit_s16", reduce=Attentive(keep))
    assert cost.flops(model, model.inputs(224)) / 2e9 == pytest.approx(billion, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduce", ["merge(3)", "attentive(0.6, (0, 1))", "random(0.5)"])
def test_every_parameter_learns(rng, reduce, dtype):
    model = models.create("vit", **FIELDS, dtype=dtype, reduce=reduce)
    params, image = filled(model, rng), rng.standard_normal(IMAGE).astype("float32")
    run = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(run({"params": p}, image)))))(params)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_finished_run(tmp_path):
    """Trained as it is, evaluated with fewer tokens: other logits by the same parameters."""
    data = {"path": "fake:40x16x3", "canvas": 16, "holdout": 8, "workers": 1}
    model = {k: v for k, v in FIELDS.items() if k != "num_classes"}
    raw = {"model": {"name": "vit", **model}, "data": data, "batch_size": 8, "duration": 2, "augment": {"size": 16}}
    vj.train(raw, tmp_path / "run")
    found = [vj.evaluate(tmp_path / "run", changes={"model.reduce": r}).metrics for r in (None, "merge(0)", "merge(4)")]
    assert found[0]["loss"] == found[1]["loss"] != found[2]["loss"] and np.isfinite(found[2]["loss"])
    loaded = vj.load(tmp_path / "run", changes={"model.reduce": "merge(4)"})
    assert loaded.model.reduce == Merge(4)
