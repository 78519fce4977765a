"""ViT: equal to the plain one, its options, its errors, and sharded over a mesh."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding
from vit_jax.architectures import VIT_SIZES
from vit_jax.bench.plain import PlainViT
from vit_jax.layers.embed import resize_patches, resize_positions
from vit_jax.layers.norm import LayerNorm
from vit_jax.models.resnet import ResNet
from vit_jax.types import Patches, UserError

TINY = {"num_classes": 5, "patch": 4, "width": 16, "depth": 2, "heads": 4, "mlp_dim": 24}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 12, 3)), jnp.float32)


def init(model, image, seed=0):
    """Unboxed random parameters, the zero head and biases included."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.2, jnp.float32), shapes)


def to_plain(p):
    """Our parameters as :class:`PlainViT` names and shapes them."""
    heads, width = TINY["heads"], TINY["width"]
    size = width // heads
    out = {"patch": p["patch"], "cls": p["cls"], "position": p["position"]["embedding"], "head": p["head"]}
    out["norm"] = p["encoder"]["norm"]
    for i in range(TINY["depth"]):
        block = p["encoder"][f"block_{i}"]
        out |= {f"norm_attention_{i}": block["norm_attention"], f"norm_mlp_{i}": block["norm_mlp"]}
        out |= {f"mlp_in_{i}": block["mlp"]["mlp_in"], f"mlp_out_{i}": block["mlp"]["mlp_out"]}
        qkv, proj = block["attention"]["qkv"], block["attention"]["out"]
        kernel, bias = qkv["kernel"].reshape(width, heads, 3, size), qkv["bias"].reshape(heads, 3, size)
        attention = {
            name: {"kernel": kernel[:, :, j], "bias": bias[:, j]} for j, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": proj["kernel"].reshape(heads, size, width), "bias": proj["bias"]}
        out[f"attention_{i}"] = attention
    return out


def test_equals_the_plain_vit_in_value_and_gradient(image):
    ours, plain = models.create("vit", **TINY), PlainViT(**TINY, dtype="float32")
    params = init(ours, image)

    def loss(p, model, convert):
        logits = model.apply({"params": convert(p)}, image)
        return jnp.sum(jnp.sin(logits)), logits

    got, want = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))(params, model, convert)
        for model, convert in ((ours, dict), (plain, to_plain))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_bfloat16_is_close_and_its_kernels_may_be_cast_once(image):
    wide, low = models.create("vit", **TINY), models.create("vit", dtype="bfloat16", **TINY)
    params = init(wide, image)
    want, got = (jax.jit(m.apply)({"params": params}, image) for m in (wide, low))
    assert got.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(got - want))) < 0.1 * float(jnp.std(want))
    cast = models.cast_kernels(low, params)
    assert cast["encoder"]["block_0"]["mlp"]["mlp_in"]["kernel"].dtype == jnp.bfloat16
    assert cast["head"]["kernel"].dtype == cast["encoder"]["norm"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(jax.jit(low.apply)({"params": cast}, image), got)


def test_head_starts_at_zero_with_its_bias_and_features_are_what_it_sees(image, run):
    model = models.create("vit", **TINY, head_bias_init=-3.0)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), image))
    np.testing.assert_array_equal(run(model, params["params"], image), np.full((4, 5), -3.0))
    found = run(model, params["params"], image, method="features")
    assert found.tokens.shape == (4, 7, 16) and found.pooled.dtype == jnp.float32
    np.testing.assert_array_equal(found.pooled, found.tokens[:, 0])
    no_head = models.create("vit", **{**TINY, "num_classes": 0})
    rest = {k: v for k, v in params["params"].items() if k != "head"}
    np.testing.assert_allclose(run(no_head, rest, image), found.pooled, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "extra", "tokens"),
    [
        ({"pool": "gap", "positions": "sincos2d"}, set(), 6),
        ({"pool": "map", "pre_logits": 7}, {"position", "pool", "pre_logits"}, 6),
        ({"registers": 2}, {"position", "cls", "registers"}, 9),
        ({"pool": "cls_gap", "registers": 2}, {"position", "cls", "registers"}, 9),
        ({"pool": "gap", "registers": 3}, {"position", "registers"}, 9),
        ({"pool": "gap", "patch": 1, "stem": (1,)}, {"position", "stem"}, 6),
    ],
)
def test_options_change_tokens_and_parameters(image, options, extra, tokens):
    model = models.create("vit", **{**TINY, **options})
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    assert set(shapes) == {"patch", "encoder", "head"} | extra
    found = jax.eval_shape(lambda p: model.apply({"params": p}, image, method="features"), shapes)
    assert found.tokens.shape == (4, tokens, 16)
    assert found.pooled.shape == (4, 32 if options.get("pool") == "cls_gap" else options.get("pre_logits", 16))


def test_patches_of_other_sizes_are_the_model_with_resized_parameters(image, run):
    """Whose first form counts; the parameters are those of ``patch``."""
    model = models.create("vit", **TINY, patches=(2, 4), registers=1)
    params = init(model, image)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, init(models.create("vit", **TINY, registers=1), image)
    )
    assert {name: form.patches for name, form in model.forms().items()} == {"patch_2": (2,), "patch_4": (4,)}
    other = models.create("vit", **{**TINY, "patch": 2}, registers=1)
    table = resize_positions(params["position"]["embedding"], (2, 3), (4, 6), 1)
    patch = params["patch"] | {"kernel": resize_patches(params["patch"]["kernel"], 2, "bilinear_plain")}
    want = run(other, params | {"patch": patch, "position": {"embedding": jnp.asarray(table)}}, image)
    np.testing.assert_allclose(run(model, params, image), want, atol=1e-5)
    same = run(model.forms()["patch_4"], params, image)
    np.testing.assert_array_equal(same, run(models.create("vit", **TINY, registers=1), params, image))


def test_patches_that_do_not_fit_or_that_nobody_draws_are_refused(image):
    def fails(words, train=False, **fields):
        model = models.create("vit", **{**TINY, **fields})
        with pytest.raises(UserError, match=words):
            jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=train), image)

    fails("image size 8x12 is not divisible by the patch size 5", patches=(4, 5))
    fails("image size 8x12 is not divisible by the patch size 3", patch=3, patches=(4,))
    fails("set objective='drawn", train=True, patches=(4, 2))
    assert not models.create("vit", **TINY, patches=(2,)).forms()


def test_gap_averages_the_grid_without_the_registers(image):
    model = models.create("vit", **TINY, pool="gap", registers=2)
    found = jax.jit(lambda p: model.apply({"params": p}, image, method="features"))(init(model, image))
    np.testing.assert_allclose(found.pooled, jnp.mean(found.tokens[:, 2:], axis=1), atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("registers", [0, 2])
def test_cls_gap_is_cls_beside_the_average_of_the_grid(image, run, registers):
    options = TINY | {"pool": "cls_gap", "registers": registers}
    model = models.create("vit", **options)
    params = init(model, image)
    assert params["position"]["embedding"].shape == (1, 1 + 6, 16) and params["head"]["kernel"].shape == (32, 5)
    found = run(model, params, image, method="features")
    tokens = np.asarray(found.tokens, np.float64)
    want = np.concatenate([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], axis=1)
    np.testing.assert_allclose(found.pooled, want, atol=1e-6)
    logits = want @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"], np.float64)
    np.testing.assert_allclose(run(model, params, image), logits, atol=1e-5)
    cls = models.create("vit", **{**options, "pool": "cls", "num_classes": 0})
    rest = {k: v for k, v in params.items() if k != "head"}
    np.testing.assert_array_equal(run(cls, rest, image, method="features").tokens, found.tokens)
    low = run(model.clone(dtype="bfloat16"), params, image, method="features")
    assert low.pooled.dtype == jnp.float32 and low.tokens.dtype == jnp.bfloat16


def test_the_epsilon_reaches_every_norm(image, run):
    """Under an epsilon of 1 what is normalised has no unit variance."""
    model = models.create("vit", **TINY, pool="map", norm_epsilon=1.0)
    params = init(model, image)
    _, found = run(model, params, image, capture_intermediates=lambda m, _: isinstance(m, LayerNorm))
    leaves = jax.tree_util.tree_leaves_with_path(found["intermediates"])
    found = [(path, leaf) for path, leaf in leaves if path[-2].key == "__call__"]
    assert len(found) == 2 * TINY["depth"] + 2
    for path, leaf in found:
        norm = params
        for key in path[:-2]:
            norm = norm[key.key]
        whole = (np.asarray(leaf) - np.asarray(norm["bias"])) / np.asarray(norm["scale"])
        assert np.var(whole, axis=-1).max() < 0.9, path


def test_the_activation_is_that_of_the_pool_too(image, run):
    model = models.create("vit", **TINY, pool="map", activation="quick_gelu")
    params = init(model, image)
    into = {"kernel": jnp.zeros((16, 24)), "bias": jnp.full(24, 0.7)}

    def pooled(kernel):
        mlp = {"mlp_in": into, "mlp_out": {"kernel": jnp.full((24, 16), kernel), "bias": jnp.zeros(16)}}
        changed = {**params, "pool": {**params["pool"], "mlp": mlp}}
        return run(model, changed, image, method="features").pooled

    want = 0.7 / (1 + np.exp(-1.702 * 0.7))
    np.testing.assert_allclose(pooled(1 / 24) - pooled(0.0), np.full((4, 16), want), atol=1e-5)


@pytest.mark.parametrize("numerics", ["original", "timm"])
def test_the_stem_has_the_models_numerics(image, run, numerics):
    options = {} if numerics == "original" else {"stem_numerics": numerics}
    model = models.create("vit", **{**TINY, "patch": 1, "stem": ()}, **options)
    params = init(model, image)
    params["stem"] = jax.tree.map(lambda x: x * 1e-3, params["stem"])
    _, found = run(model, params, image, capture_intermediates=lambda m, _: isinstance(m, ResNet))
    stem = {n: run(ResNet((), numerics=n), params["stem"], image) for n in ("original", "timm")}
    np.testing.assert_array_equal(found["intermediates"]["stem"]["__call__"][0], stem[numerics])
    assert float(jnp.max(jnp.abs(stem["original"] - stem["timm"]))) > 1e-6


def test_training_draws_dropout_from_its_key(image):
    model = models.create("vit", **TINY, dropout=0.3, drop_path=0.3)
    params = init(model, image)
    run = jax.jit(lambda key: model.apply({"params": params}, image, train=True, rngs={"dropout": key}))
    a, b, c = (run(jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert float(jnp.max(jnp.abs(a - c))) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "mean"}, "unknown pool 'mean'"),
        ({"positions": "learned"}, "unknown positions 'learned'; did you mean 'learn'"),
        ({"heads": 3}, "width 16 is not divisible by 3 heads"),
        ({"patch": 5}, "image size 8x12 is not divisible by the patch size 5"),
    ],
)
def test_mistakes_are_sentences_at_trace_time(image, options, message):
    model = models.ViT(**{**TINY, **options})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_sharded_over_2x2x2_equals_one_device(image, dtype):
    model = models.create("vit", **TINY, dtype=dtype)
    params = init(model, image)

    def run(p, x):
        return jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x))))(p), model.apply({"params": p}, x)

    want = jax.jit(run)(params, image)
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    boxed = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    placed = jax.device_put(params, sharding.param_shardings(boxed, mesh))
    assert placed["encoder"]["block_0"]["attention"]["qkv"]["kernel"].sharding.spec[1] == "tensor"
    with jax.set_mesh(mesh):
        got = jax.jit(run)(placed, jax.device_put(image, sharding.data_sharding(mesh)))
    scale = 1e-5 if dtype == "float32" else 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=scale * max(1, np.abs(b).max())), *map(np_tree, (got, want))
    )


def np_tree(tree):
    return jax.tree.map(np.asarray, tree)


def test_variants_divide_into_heads():
    for fields in VIT_SIZES.values():
        assert fields["width"] % fields["heads"] == 0


class Masked(nn.Module):
    """A model around a ViT that encodes the first tokens only."""

    keep: int

    @nn.compact
    def __call__(self, image):
        vit = models.ViT(**{**TINY, "num_classes": 0, "pool": "cls_gap"}, name="encoder")
        tokens, grid = vit.embed(image, False)
        assert grid == (2, 3) and tokens.shape[1] == 7
        return vit.pooled(vit.encode_tokens(tokens[:, : self.keep], False))


def test_another_model_embeds_encodes_and_pools_with_it(image):
    vit = models.ViT(**{**TINY, "num_classes": 0, "pool": "cls_gap"})
    params = init(vit, image)
    inner = jax.eval_shape(Masked(7).init, jax.random.key(0), image)["params"]["encoder"]
    assert jax.tree.structure(nn.unbox(inner)) == jax.tree.structure(params)
    whole, part = (jax.jit(Masked(n).apply)({"params": {"encoder": params}}, image) for n in (7, 3))
    np.testing.assert_allclose(whole, jax.jit(vit.apply)({"params": params}, image), atol=1e-6)
    assert part.shape == whole.shape and float(jnp.max(jnp.abs(part - whole))) > 1e-3


def test_a_norm_after_pooling_beside_a_class_token(image, run):
    """As masked autoencoders are fine-tuned: the grid's average, then the norm; the token is only attended to."""
    model = models.create("vit", **TINY, pool="gap", cls_token=True, final_norm=False, pool_norm=True)
    params = init(model, image)
    assert "cls" in params and params["position"]["embedding"].shape == (1, 7, 16) and "norm" not in params["encoder"]
    found = run(model, params, image, method="features")
    norm = run(LayerNorm(), params["norm_pool"], np.mean(found.tokens[:, 1:], 1))
    np.testing.assert_allclose(found.pooled, norm, atol=1e-6)
    roles = model.roles(params)
    assert roles["norm_pool"]["scale"].part == roles["head"]["kernel"].part == "head"
    without = model.clone(cls_token=False)
    others = {**params, "position": {"embedding": np.asarray(params["position"]["embedding"])[:, 1:]}}
    assert "cls" not in init(without, image)
    assert not np.allclose(run(without, others, image), run(model, params, image))


def test_a_distilled_vit_has_two_class_tokens_and_two_heads(image):
    """Each head sees its own token, and the answer is the mean (Touvron et al. 2021)."""
    model = models.create("vit", **TINY, distilled=True)
    params = init(model, image)
    assert params["position"]["embedding"].shape == (1, 2 + 6, 16) and params["dist"].shape == (1, 1, 16)
    found = jax.jit(lambda p: model.apply({"params": p}, image, method="features"))(params)
    maps = jax.tree.map(np.asarray, [params[name] for name in ("head", "head_dist")])
    heads = [np.asarray(found.tokens[:, i]) @ m["kernel"] + m["bias"] for i, m in enumerate(maps)]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, image), np.mean(heads, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.pooled, found.tokens[:, :2].mean(1), atol=1e-6)
    role = model.roles(params)
    assert (role["dist"].kind, role["dist"].part, role["head_dist"]["kernel"].part) == ("token", "stem", "head")
    assert role["head_dist"]["kernel"].new
    with pytest.raises(UserError, match="distilled=True has two class tokens and pool='gap' none"):
        jax.eval_shape(models.create("vit", **TINY, distilled=True, pool="gap").init, jax.random.key(0), image)


GRIDS = ((2, 3), (1, 1), (4, 1))


def unlike(images, filled):
    """Images float32[h,w,3] of unlike shapes as one batch of patches."""
    rows = []
    for x in images:
        h, w = (side // 4 for side in x.shape[:2])
        at = np.zeros((filled, 2), np.int32)
        at[: h * w] = np.indices((h, w)).reshape(2, -1).T
        pixels = np.full((filled, 48), 7.0, np.float32)  # what fills up is not zero, to be sure that nothing sees it
        pixels[: h * w] = x.reshape(h, 4, w, 4, 3).swapaxes(1, 2).reshape(h * w, -1)
        rows.append((pixels, at, np.arange(filled) < h * w))
    return Patches(*(jnp.asarray(np.stack(part)) for part in zip(*rows, strict=True)))


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{"pool": "map"}, {"pool": "cls", "registers": 2}, {"pool": "gap", "scan": True}])
def test_a_batch_of_unlike_shapes_is_each_image_alone(options):
    """Values, and gradients of the parameters; what fills up has none."""
    model = models.create("vit", **{**TINY, **options, "position_grid": 3})
    rng = np.random.default_rng(3)
    images = [rng.standard_normal((4 * h, 4 * w, 3)).astype(np.float32) for h, w in GRIDS]
    params, batch, traced = init(model, images[0][None]), unlike(images, 7), []

    @jax.jit
    def loss(params, pixels, batch):
        traced.append(1)
        logits = model.apply({"params": params}, batch._replace(pixels=pixels))
        return jnp.sum(jnp.tanh(logits)), logits

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (ours, seen), logits = grad(params, batch.pixels, batch)
    apply = jax.jit(lambda params, image: model.apply({"params": params}, image[None])[0])
    np.testing.assert_allclose(logits, np.stack([apply(params, image) for image in images]), atol=2e-6)
    alone = jax.grad(lambda params: sum(jnp.sum(jnp.tanh(apply(params, image))) for image in images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, jax.jit(alone)(params))
    assert not np.asarray(seen)[~np.asarray(batch.real)].any() and np.asarray(seen)[np.asarray(batch.real)].all()
    grad(params, batch.pixels, unlike(images[::-1], 7))
    assert len(traced) == 1
    nothing = batch._replace(real=jnp.zeros_like(batch.real))
    assert np.isfinite(loss(params, batch.pixels, nothing)[1]).all()


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("vit", {}, "set position_grid=16"),
        ("vit", {"position_grid": 3, "rotary": "rope"}, "set rotary=None"),
        ("vit", {"position_grid": 3, "reduce": "merge(1)"}, "set reduce=None"),
        ("mixer", {}, "Mixer takes images of one shape"),
    ],
)
def test_what_takes_no_images_of_unlike_shapes_says_so(name, fields, said):
    sizes = {k: v for k, v in TINY.items() if k != "heads" or name == "vit"}
    model = models.create(name, **sizes, **fields)
    batch = unlike([np.zeros((8, 8, 3), np.float32)], 4)
    with pytest.raises(UserError, match=said):
        jax.eval_shape(model.init, jax.random.key(0), batch)
    if "position_grid" in fields:
        with pytest.raises(UserError, match="position_grid has learned positions"):
            jax.eval_shape(model.clone(positions="none").init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
