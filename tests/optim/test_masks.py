from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.models.roles import roles
from vit_jax.optim import masks
from vit_jax.types import UserError

LEAVES = [
    "cls",
    "position/embedding",
    "patch/kernel",
    "stem/norm_root/scale",
    "encoder/block_0/mlp/mlp_in/kernel",
    "encoder/block_1/norm_mlp/scale",
    "encoder/block_2/attention/qkv/bias",
    "encoder/norm/scale",
    "pool/probe",
    "head/kernel",
    "head/bias",
]


def tree(names):
    out = {}
    for i, name in enumerate(names):
        *modules, leaf = name.split("/")
        node = out
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jnp.full((2,), float(i))
    return out


def by_path(values, params):
    return dict(zip(jax.tree.leaves(masks.paths(params)), jax.tree.leaves(values), strict=True))


def test_paths_are_slash_separated():
    assert sorted(jax.tree.leaves(masks.paths(tree(LEAVES)))) == sorted(LEAVES)


def test_the_first_rule_that_matches_the_whole_path_decides():
    params = tree(LEAVES)
    found = by_path(
        masks.first_match([("head/bias", 3), ("head/.*", 2), ("head", 9), (".*/scale", 1)], params, 0), params
    )
    assert {k: v for k, v in found.items() if v} == {
        "head/bias": 3,
        "head/kernel": 2,
        "stem/norm_root/scale": 1,
        "encoder/block_1/norm_mlp/scale": 1,
        "encoder/norm/scale": 1,
    }


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("head", r"freeze pattern 'head' matches no whole parameter path; nearest: 'head/"),
        ("encoder/blok_1/.*", r"nearest: .*'encoder/block_1/\.\*'"),
        ("head/(kernel", "is no regular expression"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern, words):
    with pytest.raises(UserError, match=words):
        masks.check("freeze", ["cls", pattern], tree(LEAVES))
    masks.check("freeze", ["cls", "head/.*"], tree(LEAVES))


def test_what_no_rule_covers_is_named():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    assert masks.covered({"a": 0.0, "b": 1.0}, params, "rule") == {"a": 0.0, "b": 1.0}
    with pytest.raises(UserError, match="no rule covers parameter 'b'"):
        masks.covered({"a": 0.0, "b": None}, params, "rule")


def test_layer_decay_counts_from_the_head():
    params = tree(LEAVES)
    assert by_path(masks.layer_decay(roles(params), 0.5), params) == {
        "cls": 0.5**4,
        "position/embedding": 0.5**4,
        "patch/kernel": 0.5**4,
        "stem/norm_root/scale": 0.5**4,
        "encoder/block_0/mlp/mlp_in/kernel": 0.5**3,
        "encoder/block_1/norm_mlp/scale": 0.5**2,
        "encoder/block_2/attention/qkv/bias": 0.5,
        "encoder/norm/scale": 1,
        "pool/probe": 1,
        "head/kernel": 1,
        "head/bias": 1,
    }


def test_kernels_alone_are_decayed():
    params = tree(LEAVES)
    decayed = {name for name, factor in by_path(masks.kernels_only(roles(params)), params).items() if factor}
    assert decayed == {"patch/kernel", "encoder/block_0/mlp/mlp_in/kernel", "head/kernel"}


def test_layer_decay_refuses_what_it_cannot_place():
    with pytest.raises(UserError, match="needs parameters named"):
        masks.layer_decay(roles(tree(["head/kernel"])), 0.5)
    with pytest.raises(UserError, match="covers parameter 'mystery/kernel'"):
        masks.layer_decay(roles(tree(["encoder/block_0/kernel", "mystery/kernel"])), 0.5)


def test_keep_and_merge_are_inverse():
    params = {"a": jnp.arange(3.0), "b": {"c": jnp.ones(2), "d": jnp.zeros(1)}}
    mask = {"a": True, "b": {"c": False, "d": True}}
    part = masks.keep(mask, params)
    assert len(jax.tree.leaves(part)) == 2
    assert isinstance(part["b"]["c"], optax.MaskedNode)
    merged = masks.merge(jax.tree.map(lambda x: x + 1, part), params)
    np.testing.assert_array_equal(merged["a"], [1, 2, 3])
    np.testing.assert_array_equal(merged["b"]["c"], [1, 1])


def test_train_only_hides_frozen_parameters_from_everything_inside(problem):
    """The transformation inside sees the trained subset in updates, parameters and both forms of ``grad_fn``."""
    seen = {}

    def update(updates, state, params, *, grad_fn, **_):
        groups = grad_fn.over_groups(lambda grad: grad(params), 4)
        seen.update(updates=updates, params=params, call=grad_fn(params), groups=groups)
        return jax.tree.map(lambda g: -g, updates), state

    mask = {"head": {"kernel": True, "bias": True}, "norm": {"scale": False}}
    tx = masks.train_only(optax.GradientTransformationExtraArgs(lambda p: p, update), mask)
    grads = problem.grad(problem.params)
    out, state = tx.update(grads, tx.init(problem.params), problem.params, grad_fn=problem.grad)
    assert all(len(jax.tree.leaves(t)) == 2 for t in [*seen.values(), state])
    np.testing.assert_array_equal(out["norm"]["scale"], 0)
    np.testing.assert_array_equal(out["head"]["bias"], -grads["head"]["bias"])
    for kind in ("call", "groups"):  # the mean over groups, weighted, is the gradient of the batch
        np.testing.assert_allclose(seen[kind]["head"]["kernel"], grads["head"]["kernel"], rtol=1e-5, atol=1e-6)
