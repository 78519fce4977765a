"""Distillation: terms by their definition, gradients of the student alone, block outputs, exact accumulation."""

import functools
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.block import ResidualBlock
from vit_jax.models import create
from vit_jax.objectives import Classify, Distill, Teacher
from vit_jax.objectives.distill import with_blocks
from vit_jax.types import UserError

RNGS = {"dropout": jax.random.key(0)}
TOKENS, WIDTH, CLASSES, DEPTH = 3, 4, 5, 3


class ToyBlock(nn.Module):
    """``x + tanh(x w)``."""

    @nn.compact
    def __call__(self, x):
        return x + jnp.tanh(x @ self.param("w", nn.initializers.normal(1.0), (WIDTH, WIDTH)))


class Toy(nn.Module):
    """Three blocks and the mean of the tokens through a linear map."""

    @nn.compact
    def __call__(self, x, *, train=False):
        for i in range(DEPTH):
            x = ToyBlock(name=f"block_{i}")(x)
            if self.is_mutable_collection("features"):
                self.put_variable("features", f"block_{i}", x)
        return jnp.mean(x, 1) @ self.param("head", nn.initializers.normal(1.0), (WIDTH, CLASSES))


def apply(params, *inputs, **options):
    return Toy().apply({"params": params}, *inputs, **options)


def reference(params, x):
    """Logits and block outputs of :class:`Toy` in float64."""
    found = []
    for i in range(DEPTH):
        x = x + np.tanh(x @ params[f"block_{i}"]["w"])
        found.append(x)
    return x.mean(1) @ params["head"], found


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def log_sigmoid(z):
    return -np.logaddexp(0, -z)


def terms(o, student, teacher, batch):
    """The three terms of every example, from their definitions."""
    x = batch["image"].astype(np.float64)
    (s, ours), (t, theirs) = reference(student, x), reference(teacher, x)
    label = np.eye(CLASSES)[batch["label"]] if batch["label"].ndim == 1 else batch["label"]
    target = (1 - o.label_smoothing) * label + o.label_smoothing / CLASSES
    T = o.temperature
    if o.output_activation == "softmax":
        hard = -(target * log_softmax(s)).sum(1)
        p = np.exp(log_softmax(t / T))
        soft = T**2 * (p * (log_softmax(t / T) - log_softmax(s / T))).sum(1)
    else:
        hard = -(target * log_sigmoid(s) + (1 - target) * log_sigmoid(-s)).sum(1)
        yes = 1 / (1 + np.exp(-t / T))
        soft = yes * (log_sigmoid(t / T) - log_sigmoid(s / T))
        soft = T**2 * (soft + (1 - yes) * (log_sigmoid(-t / T) - log_sigmoid(-s / T))).sum(1)
    pairs = list(zip(ours, theirs, strict=True))[-o.blocks :]
    feature = sum(((a - b) ** 2).sum((1, 2)) / (TOKENS * WIDTH) for a, b in pairs) / o.blocks
    return hard, soft, feature, (s.argmax(1) == t.argmax(1))


def make(rng, size=12, soft=False):
    def params():
        blocks = {f"block_{i}": {"w": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)} for i in range(DEPTH)}
        return blocks | {"head": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)}

    label = rng.integers(0, CLASSES, size).astype(np.int32)
    batch = {
        "image": rng.normal(size=(size, TOKENS, WIDTH)).astype(np.float32),
        "label": 0.7 * np.eye(CLASSES, dtype=np.float32)[label] + np.float32(0.06) if soft else label,
        "mask": np.arange(size) % 5 != 2,
    }
    return batch, params(), params()


CASES = [
    Distill("x", hard=0.5, soft=2.0, feature=3.0, temperature=2.5, blocks=2, label_smoothing=0.1),
    Distill("x", hard=1.5, soft=0.3, feature=0.2, temperature=0.7, blocks=3, output_activation="sigmoid"),
    Distill("x", hard=0.0, soft=1.0, feature=0.0),
    Distill("x", hard=1.0, soft=0.0, feature=2.0, blocks=1),
]


@pytest.mark.first(3)
@pytest.mark.parametrize("o", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_sum_of_its_terms(rng, o, mixed):
    batch, student, teacher = make(rng, soft=mixed)
    loss, metrics = o.bind(Teacher(teacher, apply), ())(apply, student, batch, RNGS, train=True)
    m = batch["mask"]
    hard, soft, feature, agree = terms(o, student, teacher, batch)
    np.testing.assert_allclose(loss, (o.hard * hard + o.soft * soft + o.feature * feature)[m].mean(), rtol=1e-5)
    wanted = {"hard": hard, "soft": soft, "feature": feature}
    for name, value in wanted.items():
        assert (name in metrics) == bool(getattr(o, name))
        if name in metrics:
            np.testing.assert_allclose(metrics[name].value(), value[m].mean(), rtol=1e-5)
    assert ("agreement" in metrics) == bool(o.soft)
    if o.soft:
        np.testing.assert_allclose(metrics["agreement"].value(), agree[m].mean(), rtol=1e-6)
    label = batch["label"].argmax(1) if mixed else batch["label"]
    hits = reference(student, batch["image"].astype(np.float64))[0].argmax(1) == label
    np.testing.assert_allclose(metrics["accuracy"].value(), hits[m].mean(), rtol=1e-6)


@pytest.mark.parametrize("o", CASES[:2], ids=["softmax", "sigmoid"])
def test_the_gradient_is_that_of_the_definition(rng, o):
    batch, student, teacher = make(rng)
    program = jax.jit(lambda s, t, b: o.bind(Teacher(t, apply), ()).value_and_grad(apply, s, b, RNGS)[1])
    grads = program(student, teacher, batch)

    def value(leaves, treedef):
        hard, soft, feature, _ = terms(o, jax.tree.unflatten(treedef, leaves), teacher, batch)
        return (o.hard * hard + o.soft * soft + o.feature * feature)[batch["mask"]].mean()

    leaves, treedef = jax.tree.flatten(jax.tree.map(np.float64, student))
    for i, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        numeric = np.zeros_like(leaf)
        for at in np.ndindex(leaf.shape):
            step = np.zeros_like(leaf)
            step[at] = 1e-5
            up, down = ([*leaves[:i], leaf + d, *leaves[i + 1 :]] for d in (step, -step))
            numeric[at] = (value(up, treedef) - value(down, treedef)) / 2e-5
        np.testing.assert_allclose(grad, numeric, atol=1e-5 * max(1, np.abs(numeric).max()), rtol=1e-4)


def test_the_teacher_gets_no_gradient(rng):
    batch, student, teacher = make(rng)

    def loss(params):
        return CASES[0].bind(Teacher(params, apply), ())(apply, student, batch, RNGS, train=True)[0]

    chex.assert_trees_all_equal(jax.grad(loss)(teacher), jax.tree.map(np.zeros_like, teacher))


def test_the_student_runs_in_training_and_its_teacher_in_evaluation(rng):
    batch, student, teacher = make(rng)
    seen = []

    def spy(params, *inputs, train, rngs=None, **options):
        seen.append((params is teacher, train, rngs is not None))
        return apply(params, *inputs, train=train, **options)

    CASES[0].bind(Teacher(teacher, spy), ())(spy, student, batch, RNGS, train=True)
    assert sorted(seen) == [(False, True, True), (True, False, False)]  # each once, on the same images


@pytest.mark.first(1)
@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(rng, output_activation):
    batch, student, _ = make(rng)
    o = Distill("x", hard=0.0, temperature=2.0, output_activation=output_activation)
    (loss, metrics), grads = o.bind(Teacher(student, apply), ()).value_and_grad(apply, student, batch, RNGS)
    found = [loss, *(metrics[k].value() for k in ("soft", "feature", "agreement"))]
    np.testing.assert_allclose(found, [0, 0, 0, 1], atol=1e-6)
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e-6


@pytest.mark.first(1)
@pytest.mark.parametrize("micro", [2, 3, 12])
def test_accumulation_is_exact(rng, micro):
    batch, student, teacher = make(rng)

    @functools.partial(jax.jit, static_argnums=0)
    def program(micro, teacher, student, batch):
        return CASES[0].bind(Teacher(teacher, apply), ()).value_and_grad(apply, student, batch, RNGS, micro)

    (whole, metrics), grads = program(1, teacher, student, batch)
    (parts, more), again = program(micro, teacher, student, batch)
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    chex.assert_trees_all_close(grads, again, atol=1e-6)
    chex.assert_trees_all_close(metrics, more, rtol=1e-6)


def test_without_labels_they_do_not_matter(rng):
    batch, student, teacher = make(rng)
    bound = Distill("x", hard=0.0).bind(Teacher(teacher, apply), ())
    other = {**batch, "label": (batch["label"] + 1) % CASES[0].blocks}
    a, b = (bound.value_and_grad(apply, student, x, RNGS)[1] for x in (batch, other))
    chex.assert_trees_all_equal(a, b)


def test_evaluated_it_is_classification_without_a_teacher(rng):
    batch, student, _ = make(rng)
    o = Distill("gone", label_smoothing=0.3, output_activation="sigmoid")
    wanted = Classify("sigmoid")(apply, student, batch, {}, train=False)
    for objective in (o, o.bind(None, ())):
        chex.assert_trees_all_equal(objective(apply, student, batch, {}, train=False), wanted)


SMALL = {"patch": 4, "width": 16, "mlp_dim": 32, "depth": 3, "num_classes": 4}
MODELS = [
    create("vit", heads=2, pool="map", **SMALL),  # pooling by attention is no block
    create("mixer", token_dim=8, **SMALL),
    create("monarch_mixer", **SMALL),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "model", [*MODELS[:2], pytest.param(MODELS[2], marks=pytest.mark.slow)], ids=lambda m: type(m).__name__
)
def test_blocks_are_heard_without_changing_what_is_computed(model, rng):
    image = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), image)["params"])
    run = lambda p, *x, **o: model.apply({"params": p}, *x, **o)  # noqa: E731
    logits, heard = jax.jit(lambda p, x: with_blocks(run, 2, p, x, train=False))(params, image)
    is_block = lambda module, name: isinstance(module, ResidualBlock) and name == "__call__"  # noqa: E731
    capture = {"capture_intermediates": is_block, "mutable": ["intermediates"]}
    want, state = jax.jit(functools.partial(run, **capture))(params, image)
    np.testing.assert_allclose(logits, want, atol=1e-6)
    assert len(heard) == 2
    for i, out in zip((1, 2), heard, strict=True):
        np.testing.assert_allclose(out, state["intermediates"]["encoder"][f"block_{i}"]["__call__"][0], atol=1e-5)
    plain = jax.make_jaxpr(lambda p, x: run(p, x, train=False))(params, image)
    listening = jax.make_jaxpr(lambda p, x: with_blocks(run, 2, p, x, train=False))(params, image)
    assert len(plain.eqns) == len(listening.eqns)


INFO = types.SimpleNamespace(num_classes=7, captions=0)


def test_the_head_is_fitted():
    assert Distill("x").fit_model(MODELS[0], INFO).num_classes == 7


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{"scan": True}, {"remat": "dots"}])
def test_blocks_within_scan_and_remat_are_heard(options, rng):
    image = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = nn.unbox(jax.jit(MODELS[0].init)(jax.random.key(0), image)["params"])
    want, got = (
        jax.jit(lambda p, x, m=m: with_blocks(lambda p, *x, **o: m.apply({"params": p}, *x, **o), 2, p, x, train=True))(
            params, image
        )
        for m in (MODELS[0], MODELS[0].clone(**options))
    )
    chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hard": -1.0}, "hard=-1.0 is not allowed"),
        ({"soft": float("inf")}, "soft=inf is not allowed"),
        ({"feature": float("nan")}, "feature=nan is not allowed"),
        ({"soft": 0, "feature": 0}, "leave nothing to learn from the teacher; take objective='classify'"),
        ({"temperature": 0}, "temperature=0 is not allowed"),
        ({"blocks": 0}, "blocks=0 is not allowed; give a number from 1 to 512, or feature=0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is not allowed"),
    ],
)
def test_mistakes(fields, text):
    with pytest.raises(UserError, match=text):
        Distill("x", **fields)
