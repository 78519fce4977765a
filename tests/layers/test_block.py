"""The block against its parts; the encoder's options change neither parameters nor result."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.attention import MultiHeadAttention
from vit_jax.layers.block import REMAT, Block, Encoder
from vit_jax.layers.mlp import MLP
from vit_jax.layers.norm import LayerNorm
from vit_jax.types import UserError

STOCHASTIC = functools.partial(Block, heads=2, mlp_dim=12, dropout=0.2, layer_scale=0.5)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params(tokens):
    return nn.meta.unbox(jax.jit(Encoder(2, STOCHASTIC).init)(jax.random.key(0), tokens)["params"])


@pytest.fixture(scope="module")
def reference(params, tokens):
    return run(params, tokens)


def run(params, tokens, train=True, grad=True, **options):
    encoder = Encoder(2, STOCHASTIC, drop_path=0.4, stochastic=True, **options)

    def loss(p):
        out = encoder.apply({"params": p}, tokens, train=train, rngs={"dropout": jax.random.key(7)})
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(loss, has_aux=True) if grad else loss)(params)


def test_block_is_pre_norm_residual(tokens):
    block = Block(heads=2, mlp_dim=12)
    p = nn.meta.unbox(jax.jit(block.init)(jax.random.key(1), tokens)["params"])
    assert set(p) == {"norm_attention", "attention", "norm_mlp", "mlp"}
    y = jax.jit(LayerNorm().apply)({"params": p["norm_attention"]}, tokens)
    x = tokens + jax.jit(MultiHeadAttention(2).apply)({"params": p["attention"]}, y)
    want = x + jax.jit(MLP(12).apply)({"params": p["mlp"]}, jax.jit(LayerNorm().apply)({"params": p["norm_mlp"]}, x))
    np.testing.assert_allclose(jax.jit(block.apply)({"params": p}, tokens), want, atol=1e-6)


def test_parallel_branches_share_a_norm_and_a_scale(tokens):
    block = Block(heads=2, mlp_dim=12, parallel=True, layer_scale=0.5)
    shapes = nn.meta.unbox(jax.eval_shape(block.init, jax.random.key(1), tokens)["params"])
    assert set(shapes) == {"norm_attention", "attention", "mlp", "scale_attention"}
    rng = np.random.default_rng(0)
    p = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)
    y = jax.jit(LayerNorm().apply)({"params": p["norm_attention"]}, tokens)
    attended = np.asarray(jax.jit(MultiHeadAttention(2).apply)({"params": p["attention"]}, y))
    both = attended + np.asarray(jax.jit(MLP(12).apply)({"params": p["mlp"]}, y))
    got = jax.jit(block.apply)({"params": p}, tokens)
    np.testing.assert_allclose(got, np.asarray(tokens) + np.asarray(p["scale_attention"]) * both, atol=1e-6)
    with pytest.raises(UserError, match="parallel branches have nothing between them"):
        jax.eval_shape(block.init, jax.random.key(1), tokens, context=tokens)


def test_the_epsilon_reaches_every_norm(tokens):
    """Under a huge epsilon nothing but the bias is left of a norm."""
    block = functools.partial(Block, heads=2, mlp_dim=12, norm_epsilon=1e30)
    encoder = Encoder(2, block, norm_epsilon=1e30)
    shapes = nn.meta.unbox(jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"])
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.5), shapes)
    norms = {"capture_intermediates": lambda m, _: isinstance(m, LayerNorm)}
    _, found = jax.jit(functools.partial(encoder.apply, **norms))({"params": params}, tokens)
    norms = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found) if path[-2].key == "__call__"]
    assert len(norms) == 5
    for norm in norms:
        np.testing.assert_array_equal(norm, np.full((3, 5, 8), 0.5))
    np.testing.assert_array_equal(jax.jit(encoder.apply)({"params": params}, tokens), np.full((3, 5, 8), 0.5))


def test_causal_and_cross_attention_without_a_fork(tokens):
    block = Block(heads=2, mlp_dim=12, causal=True)
    p = nn.meta.unbox(jax.jit(block.init)(jax.random.key(1), tokens, context=tokens[:, :2])["params"])
    assert {"norm_cross_attention", "cross_attention"} <= set(p)
    apply = jax.jit(block.apply)
    out = apply({"params": p}, tokens, context=tokens[:, :2])
    later = tokens.at[:, 3:].set(0.0)
    np.testing.assert_allclose(apply({"params": p}, later, context=tokens[:, :2])[:, :3], out[:, :3], atol=1e-6)
    other = apply({"params": p}, tokens, context=tokens[:, 2:])
    assert float(jnp.max(jnp.abs(other - out))) > 1e-3


def test_layer_scale_of_zero_is_the_identity(tokens):
    block = Block(heads=2, mlp_dim=12, layer_scale=0.0)
    boxed = jax.jit(block.init)(jax.random.key(1), tokens)
    assert boxed["params"]["scale_mlp"].names == ("embed",)
    np.testing.assert_array_equal(jax.jit(block.apply)(boxed, tokens), tokens)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "options",
    [{"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}, {"scan": True, "remat": "dots_no_batch"}],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_scan_and_remat_change_nothing_with_dropout_on(reference, params, tokens, options):
    got = run(params, tokens, **options)
    assert jax.tree.structure(got) == jax.tree.structure(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, reference)
    assert set(REMAT) == {"full", "dots", "dots_no_batch"}


def test_parameters_are_per_block_whatever_the_options(params, tokens):
    assert set(params) == {"block_0", "block_1", "norm"}
    scanned = jax.jit(Encoder(2, STOCHASTIC, scan=True, remat="full").init)(jax.random.key(0), tokens)["params"]
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(scanned), params)


def test_boxed_parameters_are_accepted_by_scan(tokens):
    encoder = Encoder(2, STOCHASTIC, scan=True)
    boxed = jax.jit(encoder.init)(jax.random.key(0), tokens)
    np.testing.assert_array_equal(
        jax.jit(encoder.apply)(boxed, tokens), jax.jit(encoder.apply)(nn.meta.unbox(boxed), tokens)
    )


def test_evaluation_is_deterministic_and_training_is_not(reference, params, tokens):
    (_, a), (_, b) = (run(params, tokens, train=False, grad=False, scan=s) for s in (False, True))
    (_, c) = reference
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(jnp.max(jnp.abs(a - c))) > 0.1


def test_attention_maps_on_request(params, tokens):
    encoder = Encoder(2, STOCHASTIC, scan=True)
    apply = functools.partial(encoder.apply, mutable=["intermediates"])
    out, state = jax.jit(apply)({"params": params}, tokens)
    assert state["intermediates"]["block_1"]["attention"]["attention"][0].shape == (3, 2, 5, 5)
    np.testing.assert_allclose(out, jax.jit(encoder.apply)({"params": params}, tokens), atol=1e-6)


def test_unknown_remat_policy(params, tokens):
    with pytest.raises(UserError, match="unknown remat policy 'fulll'; did you mean 'full'"):
        run(params, tokens, grad=False, remat="fulll")


@pytest.mark.thorough
def test_a_split_block_is_two_blocks_in_one(tokens):
    """Self-attention and an MLP, then attention to the normed context and another MLP."""
    context = jnp.concatenate([tokens, tokens + 1], axis=1)
    block = Block(mlp_dim=24, heads=2, split=True, norm_epsilon=1e-3)
    params = nn.meta.unbox(jax.jit(block.init)(jax.random.key(1), tokens, context=context)["params"])
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    first = {"norm_mlp": params["norm_mlp_self"], "mlp": params["mlp_self"]}
    first |= {k: params[k] for k in ("norm_attention", "attention")}
    y = jax.jit(Block(mlp_dim=24, heads=2, norm_epsilon=1e-3).apply)({"params": first}, tokens)
    normed = jax.jit(LayerNorm(epsilon=1e-3).apply)({"params": params["norm_context"]}, context)
    q = jax.jit(LayerNorm(epsilon=1e-3).apply)({"params": params["norm_cross_attention"]}, y)
    y += jax.jit(MultiHeadAttention(2).apply)({"params": params["cross_attention"]}, q, context=normed)
    h = jax.jit(LayerNorm(epsilon=1e-3).apply)({"params": params["norm_mlp"]}, y)
    y += jax.jit(MLP(24).apply)({"params": params["mlp"]}, h)
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, tokens, context=context), y, atol=1e-5)
    noisy = jax.jit(block.clone(dropout=0.5).apply)
    one, two = (noisy({"params": params}, tokens, context=context, key=jax.random.key(k)) for k in (0, 1))
    assert float(jnp.max(jnp.abs(one - two))) > 1e-2


def test_an_encoder_without_a_final_norm(params, tokens):
    bare = {k: v for k, v in params.items() if k != "norm"}
    x = jax.jit(Encoder(2, STOCHASTIC, final_norm=False).apply)({"params": bare}, tokens)
    normed = jax.jit(LayerNorm().apply)({"params": params["norm"]}, x)
    np.testing.assert_allclose(jax.jit(Encoder(2, STOCHASTIC).apply)({"params": params}, tokens), normed, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"scan": True}, marks=pytest.mark.slow),
        pytest.param({"remat": "full"}, marks=pytest.mark.slow),
        {"scan": True, "remat": "dots"},
    ],
)
def test_outputs_of_blocks_on_request_in_training_too(params, tokens, options):
    """Those of encoders that end there, and their gradient reaches the parameters."""
    encoder = Encoder(2, STOCHASTIC, stochastic=True, **options)
    rngs = {"dropout": jax.random.key(7)}

    def first(p):
        found = encoder.apply({"params": p}, tokens, train=True, rngs=rngs, mutable=["features"])[1]["features"]
        return jnp.sum(found["block_0"] ** 2), found

    grads, found = jax.jit(jax.grad(first, has_aux=True))(params)
    whole = Encoder(2, STOCHASTIC, stochastic=True, final_norm=False, **options)
    body = {k: v for k, v in params.items() if k != "norm"}
    want = jax.jit(functools.partial(whole.apply, train=True))({"params": body}, tokens, rngs=rngs)
    np.testing.assert_allclose(found["block_1"], want, atol=1e-5)
    key = jax.random.split(encoder.apply({"params": params}, rngs=rngs, method=lambda m: m.make_rng("dropout")), 2)[0]
    want = jax.jit(STOCHASTIC().apply)({"params": params["block_0"]}, tokens, key=key)
    np.testing.assert_allclose(found["block_0"], want, atol=1e-5)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads["block_0"]["mlp"]))
    assert not any(jnp.any(g != 0) for g in jax.tree.leaves([grads["block_1"], grads["norm"]]))


def test_what_is_let_out_on_request_is_no_part_of_a_fresh_model(tokens):
    assert set(jax.eval_shape(Encoder(2, STOCHASTIC).init, jax.random.key(0), tokens)) == {"params"}


OPTIONS = [{}, {"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}]


class Everything(nn.Module):
    """A block with one of each: Flax's dropout, a running mean, something sown, a perturbation."""

    @nn.compact
    def __call__(self, x, *, key=None, drop_path=None):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * jnp.mean(x, (0, 1))
        self.sow("intermediates", "tokens", x)
        y = nn.Dense(x.shape[-1])(x - mean.value.reshape(1, 1, -1))
        if not self.is_initializing():
            y = self.perturb("branch", y)
        return x + nn.Dropout(0.5, rng_collection="mask", deterministic=not self.has_rng("mask"))(y)


@pytest.fixture(scope="module")
def everything(tokens):
    """Variables, gradients and updates of three such blocks, without scan and remat."""
    variables = jax.jit(Encoder(3, Everything).init)(jax.random.key(0), tokens)
    changed = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables)
    return changed, of_everything(changed, tokens)


def of_everything(variables, tokens, rngs=None, **options):
    encoder = Encoder(3, Everything, **options)
    collections = ["batch_stats", "intermediates", "perturbations", "features"]
    zeros = jax.eval_shape(functools.partial(encoder.apply, mutable=["perturbations"]), variables, tokens)[1]

    def loss(params, perturbations):
        given = {**variables, "params": params, "perturbations": perturbations}
        out, state = encoder.apply(given, tokens, rngs=rngs, mutable=collections)
        return jnp.sum(jnp.sin(out)), (out, state)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), zeros["perturbations"])
    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], zeros)


@pytest.mark.parametrize("options", OPTIONS[1:])
def test_scan_and_remat_keep_every_collection(everything, tokens, options):
    variables, expected = everything
    assert set(variables) == {"params", "batch_stats"} and set(variables["batch_stats"]) == {
        f"block_{i}" for i in range(3)
    }
    found = of_everything(variables, tokens, **options)
    (_, by_branch), (_, state) = expected
    assert set(state) == {"batch_stats", "intermediates", "perturbations", "features"}
    assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for g in jax.tree.leaves(by_branch))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state["batch_stats"], dict(variables["batch_stats"]))
    assert not any(jax.tree.leaves(same))


@pytest.mark.first(1)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_random_stream_reaches_the_blocks(everything, tokens, options):
    variables, (_, (out, _)) = everything
    one, same, other = (of_everything(variables, tokens, {"mask": jax.random.key(k)}, **options)[1] for k in (0, 0, 1))
    np.testing.assert_array_equal(one[0], same[0])
    assert all(float(jnp.max(jnp.abs(one[0] - x))) > 1e-2 for x in (other[0], out))
    blocks = [one[1]["features"][f"block_{i}"] for i in range(3)]
    inputs = [tokens, *blocks[:2]]
    kept = np.stack([np.asarray(y != x) for x, y in zip(inputs, blocks, strict=True)])
    assert np.all((kept.mean((1, 2, 3)) > 0.3) & (kept.mean((1, 2, 3)) < 0.7))
    assert np.any(kept[0] != kept[1]) and np.any(kept[1] != kept[2])
    if not options.get("scan"):
        plain = of_everything(variables, tokens, {"mask": jax.random.key(0)})[1]
        np.testing.assert_allclose(one[0], plain[0], atol=1e-6)


class Halving(nn.Module):
    """Leaves every second token out."""

    @nn.compact
    def __call__(self, x, *, key=None, drop_path=None):
        return nn.Dense(x.shape[-1])(x)[:, ::2]


def test_the_number_of_tokens_may_change_without_scan(tokens):
    encoder = Encoder(2, Halving, remat="full")
    out, params = jax.jit(encoder.init_with_output)(jax.random.key(0), tokens)
    assert out.shape == (3, 2, 8) and jax.jit(encoder.apply)(params, tokens).shape == (3, 2, 8)
    with pytest.raises(UserError, match=r"a block makes 3 tokens of 5, .*; set scan=False"):
        encoder.clone(scan=True).apply(params, tokens)


@pytest.mark.first(1)
@pytest.mark.parametrize("options", OPTIONS)
def test_attention_has_a_gradient_under_scan_and_remat(params, tokens, options):
    """The gradient by the probabilities of a block is that of the function of these probabilities."""
    encoder = Encoder(2, STOCHASTIC, **options)
    zeros = {f"block_{i}": {"attention": {"attention": jnp.zeros((3, 2, 5, 5))}} for i in range(2)}

    def loss(perturbations):
        given = {"params": params, "perturbations": perturbations}
        out, state = encoder.apply(given, tokens, mutable=["intermediates"])
        return jnp.sum(jnp.sin(out)), state["intermediates"]

    (value, shown), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(zeros)
    assert jax.tree.structure(grads) == jax.tree.structure(zeros)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 5, 5)), jnp.float32)
    for block, grad in grads.items():
        moved = {**zeros, block: {"attention": {"attention": 1e-2 * direction}}}
        (after, seen), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(moved)
        slope = jnp.sum(grad["attention"]["attention"] * direction)
        np.testing.assert_allclose((after - value) / 1e-2, slope, rtol=0.1, atol=2e-2)
        was = shown[block]["attention"]["attention"][0]
        np.testing.assert_allclose(seen[block]["attention"]["attention"][0], was + 1e-2 * direction, atol=1e-6)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for g in jax.tree.leaves(grads))


def test_a_scan_takes_rows_of_gradients_by_indices_the_compiler_does_not_know(params, tokens):
    """Constant ones give a kernel for each block and parameter, and half a second of compiling for each block."""
    loss = lambda p: jnp.sum(Encoder(2, STOCHASTIC, scan=True).apply({"params": p}, tokens))  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    hidden = re.findall(r"stablehlo.optimization_barrier %\S+ : tensor<i32>", text)
    assert len(hidden) == 2 * len(jax.tree.leaves(params["block_0"]))
