"""Prompted blocks are blocks that see more tokens, and tell of classes in the order of their prompts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.layers.block import Block
from vit_jax.layers.hooks import Tokens
from vit_jax.layers.tokens.prompts import Prompted
from vit_jax.types import UserError

TINY = {"patch": 4, "width": 8, "depth": 3, "heads": 2, "mlp_dim": 12, "num_classes": 4}


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), nn.meta.unbox(shapes))


@pytest.fixture(scope="module")
def case():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 8)), jnp.float32)
    block = Prompted(12, heads=2, prompts=3)
    return block, random(jax.eval_shape(block.init, jax.random.key(0), x)["params"]), x


def test_a_prompted_block_is_a_block_of_more_tokens(case):
    block, params, x = case
    run = jax.jit(lambda p: block.apply({"params": p}, x, mutable=["levels"]))
    out, state = run(params)
    plain = {k: v for k, v in params.items() if k not in ("prompts", "prototypes")}
    wide = jnp.concatenate([jnp.broadcast_to(params["prompts"], (2, 3, 8)), x], axis=1)
    want = np.asarray(jax.jit(lambda p: Block(12, heads=2).apply({"params": p}, wide))(plain))
    np.testing.assert_allclose(out, want[:, 3:], atol=1e-6)
    logits = (want[:, :3] * np.asarray(params["prototypes"])).sum(-1)
    np.testing.assert_allclose(state["levels"]["logits"], logits, atol=1e-5)
    order = jnp.asarray([2, 0, 1])  # coarse classes by other numbers are the same classes
    moved, others = run({**params, **{k: params[k][order] for k in ("prompts", "prototypes")}})
    np.testing.assert_allclose(moved, out, atol=1e-5)
    np.testing.assert_allclose(others["levels"]["logits"], logits[:, order], atol=1e-5)


@pytest.mark.thorough
def test_a_level_teaches_the_blocks_up_to_its_own():
    model = models.create("vit", **TINY, prompts=((1, 3),))
    plain = models.create("vit", **TINY)
    image = jnp.asarray(np.random.default_rng(2).standard_normal((2, 8, 8, 3)), jnp.float32)
    shapes = [jax.eval_shape(m.init, jax.random.key(0), image)["params"] for m in (model, plain)]
    sizes = [sum(x.size for x in jax.tree.leaves(nn.meta.unbox(s))) for s in shapes]
    assert sizes[0] - sizes[1] == 2 * 3 * TINY["width"]
    params = random(shapes[0])

    def loss(params):
        _, state = model.apply({"params": params}, image, mutable=["levels"])
        return jnp.sum(jnp.sin(state["levels"]["encoder"]["block_1"]["logits"]))

    grads = jax.jit(jax.grad(loss))(params)
    moved = {"/".join(k.key for k in path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if np.any(g)}
    assert {path.split("/")[1] for path in moved if "encoder" in path} == {"block_0", "block_1"}
    assert "patch/kernel" in moved and not any("head" in path for path in moved)
    role = model.roles(params)["encoder"]["block_1"]["prompts"]
    assert (role.kind, role.new, role.part) == ("token", True, "block")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompts": ((3, 2),)}, r"name a block twice, or one beyond the last of 3, 2"),
        ({"prompts": ((1, 2), (1, 3))}, "name a block twice"),
        ({"prompts": ((1, 2),), "reduce": "merge(1)"}, "set reduce=None"),
        ({"prompts": ((1, 2),), "scan": True}, "set scan=False"),
    ],
)
def test_what_cannot_be(fields, words):
    model = models.create("vit", **TINY, **fields)
    params = random(
        jax.eval_shape(models.create("vit", **TINY, prompts=((1, 2),)).init, jax.random.key(0), IMAGE)["params"]
    )
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda p: model.apply({"params": p}, IMAGE), params)


IMAGE = jnp.zeros((1, 8, 8, 3))


def test_merged_tokens_have_no_prompts(case):
    block, params, x = case
    with pytest.raises(UserError, match="each stand for one"):
        block.apply({"params": params}, Tokens(x, jnp.ones((2, 5))))
