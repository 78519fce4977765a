"""Linear maps change their structure: exactly where that can be, said how far where not, in every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.compress.restructure import LinearMap, Request, linear_maps, relinear, restructure, specs
from vit_jax.convert import read, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor
from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.block_sparse import BlockSparse
from vit_jax.layers.linear.int8 import Int8
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.layers.linear.sparse24 import Packed24, Sparse24, prune
from vit_jax.layers.linear.specs import name_of
from vit_jax.models import describe
from vit_jax.types import UsageError, UserError

SMALL = {"patch": 4, "width": 16, "mlp_dim": 32, "depth": 2}
SQUARE = {"mlp_dim": 16}
"""Of few shapes of maps: what changes them is compiled for each."""
SLOW_SPECS, SLOW_FIELDS = ("low_rank(4)", "block_diagonal(2)", "sparse24"), ("qkv_linear", "mlp_linear")


def pretrained(model, rng, **fields):
    shapes = describe.shapes(model, 8)
    params = {p: Tensor.of(rng.normal(scale=0.3, size=s).astype(np.float32)) for p, s in shapes.items()}
    names = tuple(map(str, range(describe.classes(model))))
    return Stored(model, params, Preprocess(8), names, **fields)


def vit(rng, **fields):
    return pretrained(models.create("vit", **{"heads": 2, "num_classes": 3, **SMALL, **fields}), rng)


def outputs(found):
    image = np.random.default_rng(5).normal(size=(4, 8, 8, 3)).astype(np.float32)
    return np.asarray(jax.jit(found.model.apply)({"params": found.tree()}, image))


def changed(found, *texts):
    return relinear(found, [Request.parse(text) for text in texts])


@pytest.fixture(scope="module", params=[8, pytest.param(4, marks=pytest.mark.slow)])
def quantised(request):
    """Bits; a model trained with levels of so many; all of it packed, with the notes; and packed but for ``out``."""
    bits, rng = request.param, np.random.default_rng(0)
    sparse = vit(rng, **SQUARE, mlp_linear=Sparse24(mask="frozen", bits=bits), qkv_linear=Sparse24(bits=bits))
    only, _ = changed(sparse, "mlp_linear=packed24(int8)", "qkv_linear=packed24(int8)")
    return bits, sparse, *changed(sparse, "packed24(int8)"), only


@pytest.mark.thorough
def test_what_was_trained_quantised_is_packed_exactly(quantised):
    bits, sparse, packed, notes, only = quantised
    assert packed.model.mlp_linear.storage == "int8" == packed.model.out_linear.storage
    for path in ("encoder/block_0/mlp/mlp_in", "encoder/block_1/attention/qkv"):
        kernel = np.asarray(sparse.params[f"{path}/kernel"].read(), np.float64)
        kept = np.asarray(prune(kernel.astype(np.float32)), np.float64)
        scale = (np.abs(kept.astype(np.float32)).max(0) / np.float32(2 ** (bits - 1) - 1)).astype(np.float32)
        np.testing.assert_allclose(packed.params[f"{path}/kernel_scale"].read(), scale, rtol=3e-7)
        spec = packed.model.mlp_linear
        here = {k.removeprefix(f"{path}/"): jnp.asarray(t.read()) for k, t in packed.params.items() if path in k}
        trained = Sparse24(bits=bits).to_dense({"kernel": jnp.asarray(kernel, jnp.float32)})[0]
        np.testing.assert_allclose(spec.to_dense(here)[0], trained, rtol=3e-7)
    assert sorted(note for note in notes if "exactly" in note) == [
        f"2 linear maps go from sparse24(bits={bits}) to packed24(int8), exactly",
        f"4 linear maps go from sparse24(mask=frozen, bits={bits}) to packed24(int8), exactly",
    ]
    np.testing.assert_allclose(outputs(only), outputs(sparse), atol=2e-5)


def test_a_dense_map_is_pruned_and_that_is_said(rng):
    dense = vit(rng, **SQUARE)
    packed, notes = changed(dense, "mlp_linear=packed24(float32)")
    kernel = np.asarray(dense.params["encoder/block_0/mlp/mlp_out/kernel"].read())
    kept = np.asarray(prune(kernel))
    error = np.linalg.norm(kept - kernel) / np.linalg.norm(kernel)
    assert notes[0].startswith("4 linear maps go from dense to packed24(float32), off by 0.")
    assert "50% to 50% of their weights were pruned away, train 'sparse24' before" in notes[0]
    low, high = (float(word) for word in notes[0].split("off by ")[1].split(" of")[0].split(" to "))
    assert low - 0.005 <= error <= high + 0.005
    assert packed.model.qkv_linear == dense.model.qkv_linear
    bytes_of = lambda p: sum(t.read().nbytes for t in p.params.values())  # noqa: E731
    assert notes[-1] == f"parameters: {bytes_of(dense):,} -> {bytes_of(packed):,} bytes"


SPECS = ["monarch(2)", "packed24", *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW_SPECS)]


@pytest.fixture(scope="module", params=SPECS)
def structured(request):
    """A spec, a model of such maps, that made dense again, and the notes."""
    other, _ = changed(vit(np.random.default_rng(0), **SQUARE), request.param)
    return request.param, other, *changed(other, "dense")


@pytest.mark.first(1)
def test_to_dense_computes_the_same(structured):
    spec, other, dense, notes = structured
    assert all("exactly" in note for note in notes[:-1])
    np.testing.assert_allclose(outputs(dense), outputs(other), atol=3e-2 if spec == "packed24" else 2e-5)
    assert set(dense.params) == set(vit(np.random.default_rng(0), **SQUARE).params)


@pytest.mark.parametrize("field", ["out_linear", *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW_FIELDS)])
def test_padded_maps_are_cut(rng, field):
    found = vit(rng, width=30, mlp_dim=62)
    monarch, _ = changed(found, f"{field}=monarch(4)")
    dense, _ = changed(monarch, "dense")
    assert {k: t.shape for k, t in dense.params.items()} == {k: t.shape for k, t in found.params.items()}
    np.testing.assert_allclose(outputs(dense), outputs(monarch), atol=2e-5)


TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
OTHERS = {
    "mixer": ("mixer", {**SMALL, **SQUARE, "token_dim": 8, "num_classes": 3}),
    "monarch_mixer": ("monarch_mixer", {**SMALL, **SQUARE, "num_classes": 3}),
    "coca": (
        "coca",
        {
            "image_tower": {"name": "vit", "patch": 4, "pool": "map", **TOWER},
            "text_tower": {"vocab_size": 50, "length": 6, "end_id": 2, "pool": "cls", **TOWER},
            "decoder": {"depth": 1, "heads": 2, "mlp_dim": 16},
            "embed_dim": 16, "queries": 3, "pool_heads": 2,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["mixer", "coca", pytest.param("monarch_mixer", marks=pytest.mark.slow)])
def repacked(request):
    """A model, and the same with all that can be packed."""
    row, fields = OTHERS[request.param]
    found = pretrained(models.create(row, **fields), np.random.default_rng(0))
    return found, changed(found, "packed24(int8)")[0]


@pytest.mark.first(1)
def test_every_model_and_back_from_its_folder(repacked, tmp_path):
    """Towers and decoders as well; what has no spec (pooling, maps across tokens) stays."""
    found, packed = repacked
    parents = {p.rpartition("/")[0] for p in packed.params if p.endswith("kernel_index")}
    assert not any("pool" in p or "tokens" in p for p in parents)
    wanted = {p.rpartition("/")[0] for p in found.params if p.endswith("/kernel") and "/encoder/" in f"/{p}"}
    assert parents == {p for p in wanted if "/tokens/" not in p and "filter" not in p and "ward" not in p}
    write.save(packed, tmp_path / "packed", "vit_jax")
    with read.load(tmp_path / "packed") as again:
        assert again.model == packed.model
        for path, tensor in packed.params.items():
            np.testing.assert_array_equal(again.params[path].read(), tensor.read(), err_msg=path)
        dense, _ = changed(again, "dense")
    assert set(dense.params) == set(found.params)


def test_a_runs_configuration_follows(rng):
    raw = {"model": {"name": "vit", "heads": 2, **SMALL}, "data": {"path": "digits"}, "seed": 3}
    found = pretrained(models.create("vit", heads=2, num_classes=3, **SMALL), rng, config=raw)
    packed, _ = changed(found, "mlp_linear=packed24")
    assert (
        packed.config["data"] == raw["data"]
        and packed.config["seed"] == 3
        and raw["model"].keys() == {"name", "heads", *SMALL}
    )
    assert models.create(**packed.config["model"]).mlp_linear == packed.model.mlp_linear
    assert "num_classes" not in packed.config["model"]


@pytest.mark.thorough
def test_every_map_of_a_mixer_in_a_quarter_of_the_bytes(rng):
    """Those across tokens where they are named; what says how they are computed changes no number of what is stored."""
    found = pretrained(
        models.create("mixer", token_dim=16, num_classes=3, **{**SMALL, "width": 64, "mlp_dim": 128}), rng
    )
    only, notes = changed(found, "int8")
    assert notes[0].startswith("4 linear maps go from dense to int8(float), off by 0.00") and len(notes) == 2
    assert only.model.token_linear == Dense() and only.model.mlp_linear == Int8()
    small, notes = changed(found, "int8", "token_linear=int8")
    quick, _ = changed(only, "mlp_linear=int8(dynamic)", "token_linear=int8(dynamic)")
    bytes_of = lambda p: sum(t.read().nbytes for k, t in p.params.items() if "/mlp/" in k or "/tokens/" in k)  # noqa: E731
    assert 0.25 < bytes_of(small) / bytes_of(found) < 0.29 and bytes_of(quick) == bytes_of(small)
    want = outputs(found)
    far = [np.abs(outputs(other) - want).max() / np.abs(want).max() for other in (small, quick)]
    assert 0 < far[0] < 0.02 and 0 < far[1] < 0.04 and far[0] != far[1]
    dense, notes = changed(quick, "dense", "token_linear=dense")
    assert notes[0] == "8 linear maps go from int8(dynamic) to dense, exactly"
    np.testing.assert_allclose(outputs(dense), outputs(small), atol=2e-5)


def test_what_is_there_already_stays(rng):
    found = vit(rng)
    same, notes = changed(found, "dense")
    assert notes[0] == "its linear maps are such already" and same.model == found.model
    assert all(same.params[k] is found.params[k] for k in found.params)


def test_mistakes(rng):
    with pytest.raises(UsageError, match=r"packed42.*did you mean 'packed24'"):
        Request.parse("packed42")
    with pytest.raises(
        UsageError, match=r"unknown field of --linear 'mlp'; allowed: mlp_linear, out_linear, qkv_linear"
    ):
        Request.parse("mlp=dense")
    with pytest.raises(UserError, match=r"encoder/block_0/attention/out: .*multiple of 4"):
        changed(pretrained(models.create("vit", heads=2, **{**SMALL, "width": 18}), rng), "packed24")
    assert Request.parse("sparse24(mask='frozen')").field is None
    with pytest.raises(UserError, match=r"Linear has no linear maps to choose for; leave --linear out"):
        relinear(Stored(models.base.Linear(3), {}, Preprocess(8)), [Request.parse("dense")])


PATH = "encoder/block_0/mlp/mlp_in"


def flat(params):
    return {f"{PATH}/{leaf}": np.asarray(x) for leaf, x in params.items()}


def moved(have, there, want, here, inputs=32):
    """``have``, of maps ``there``, for a model that takes ``want``, of maps ``here``."""
    maps = ({PATH: LinearMap(spec, inputs, 64 * inputs // 32)} for spec in (there, here))
    return restructure(flat(have), *maps, flat(want))


def stays(have, *others):
    found, notes = moved(have, *others)
    return (
        notes == [] and found.keys() == flat(have).keys() and all((found[k] == v).all() for k, v in flat(have).items())
    )


@pytest.fixture
def dense(rng):
    return Dense().from_dense(rng.normal(size=(32, 64)).astype(np.float32), np.arange(64, dtype=np.float32))


def test_the_maps_of_a_model(rng):
    model = models.create("mixer", **SMALL, token_dim=8, mlp_linear="monarch(2)")
    found = linear_maps(model, 8)
    assert found["encoder/block_1/mlp/mlp_in"] == LinearMap(Monarch(2), 16, 32) and len(found) == 8
    assert found["encoder/block_0/tokens/mlp_out"] == LinearMap(Dense(), 8, 4)
    assert specs(model) == {Monarch(2), Dense()} and specs(models.create("clip_vit_b32")) == {Dense()}


@pytest.mark.parametrize("spec", [Monarch(4), LowRank(8)])
def test_dense_maps_are_projected_and_multiplied_out_again(dense, spec):
    want = spec.from_dense(dense["kernel"], dense["bias"])
    have, maps = flat(dense) | {"cls": np.ones(3)}, ({PATH: LinearMap(s, 32, 64)} for s in (Dense(), spec))
    found, notes = restructure(have, *maps, flat(want) | {"cls": np.ones(3)})
    assert set(found) == {*flat(want), "cls"}
    for path, value in flat(want).items():
        np.testing.assert_array_equal(found[path], value)
    kernel = np.asarray(spec.to_dense(want)[0])
    error = np.linalg.norm(kernel - dense["kernel"]) / np.linalg.norm(dense["kernel"])
    assert (
        notes[0] == f"1 linear maps go from dense to {name_of(spec)}, off by {error:.2g} to {error:.2g} of their norm"
    )
    assert error > 0.5 and notes[1:] == [
        f"warning: 1 of 1 linear maps lose most of their norm from dense to {name_of(spec)}, and with it what they "
        "have learned; train the model on before you use it, or take a structure with more parameters"
    ]
    back, notes = moved(want, spec, dense, Dense())
    np.testing.assert_allclose(back[f"{PATH}/kernel"], kernel, atol=1e-6)
    assert notes == [f"1 linear maps go from {name_of(spec)} to dense, exactly"]


def test_from_one_structure_to_another(dense):
    four, two = (Monarch(n).from_dense(dense["kernel"], dense["bias"]) for n in (4, 2))
    found, notes = moved(four, Monarch(4), two, Monarch(2, implementation="dense"))
    want = Monarch(2).from_dense(Monarch(4).to_dense(four)[0], dense["bias"])
    for path, value in flat(want).items():
        np.testing.assert_allclose(found[path], value, atol=1e-5)
    assert notes == ["1 linear maps go from monarch(4) to monarch(2), exactly"]
    assert stays(four, Monarch(4), four, Monarch(4, implementation="dense"))


def test_what_was_padded_is_cut(rng):
    kernel, bias = rng.normal(size=(30, 60)).astype(np.float32), np.zeros(60, np.float32)
    padded = Monarch(4).from_dense(kernel, bias)
    found, _ = moved(padded, Monarch(4), {"kernel": kernel, "bias": bias}, Dense(), inputs=30)
    np.testing.assert_allclose(found[f"{PATH}/kernel"], np.asarray(Monarch(4).to_dense(padded)[0])[:30], atol=1e-6)


def test_equal_structures_and_other_sizes_stay(dense):
    zeros = Dense().from_dense(np.zeros_like(dense["kernel"]), dense["bias"])  # as a new head is
    small = Monarch(2).from_dense(np.zeros((8, 16), np.float32), dense["bias"][:16])
    for want, spec, inputs in ((dense, Dense(), 32), (zeros, Dense(), 32), (small, Monarch(2), 8)):
        assert stays(dense, Dense(), want, spec, inputs)
    for spec in (Sparse24(), Sparse24(bits=4)):  # whose parameters are a dense map's, whatever training makes of them
        assert stays(dense, spec, dense, Dense()) and stays(dense, Dense(), dense, spec)
    assert stays({"bias": dense["bias"]}, Dense(), dense, Monarch(4))


@pytest.mark.parametrize("spec", [Sparse24(mask="frozen", bits=8), BlockSparse(0.5, "magnitude", 8)])
def test_a_model_of_frozen_zeros_prunes_what_it_starts_from(dense, spec):
    plain = Sparse24(mask="frozen") if isinstance(spec, Sparse24) else spec
    want = plain.from_dense(dense["kernel"], dense["bias"])
    found, notes = moved(dense, Dense(), want, spec)
    np.testing.assert_array_equal(found[f"{PATH}/kernel"], want["kernel"])
    assert notes[0].startswith(f"1 linear maps go from dense to {name_of(plain)}, off by")
    assert len(notes) == 1 + isinstance(spec, BlockSparse)  # only these lose so much that it is warned of
    pruned = {leaf: found[f"{PATH}/{leaf}"] for leaf in ("kernel", "bias")}
    assert stays(pruned, Dense(), want, spec) and stays(pruned, spec, want, spec)
    monarch = Monarch(4).from_dense(dense["kernel"], dense["bias"])
    found, notes = moved(monarch, Monarch(4), want, spec)
    again = np.asarray(plain.from_dense(found[f"{PATH}/kernel"], None)["kernel"])
    np.testing.assert_array_equal(found[f"{PATH}/kernel"], again)
    assert notes[0].startswith(f"1 linear maps go from monarch(4) to {name_of(plain)}, off by")


def test_block_sparse_maps_come_and_go(dense):
    spec, other = (BlockSparse(0.5, "random", 8, rank=2, seed=seed) for seed in (3, 4))
    want = spec.from_dense(dense["kernel"], dense["bias"])
    found, notes = moved(dense, Dense(), want, spec)
    assert set(found) == set(flat(want)) and f"{PATH}/kernel_random_4_3" in found
    for path, value in flat(want).items():
        np.testing.assert_array_equal(found[path], value)
    assert notes[0].startswith(f"1 linear maps go from dense to {name_of(spec)}, off by ") and len(notes) == 2
    back, notes = moved(want, spec, dense, Dense())
    assert set(back) == set(flat(dense)) and notes == [f"1 linear maps go from {name_of(spec)} to dense, exactly"]
    np.testing.assert_allclose(back[f"{PATH}/kernel"], spec.to_dense(want)[0], atol=1e-6)
    again, notes = moved(want, spec, other.from_dense(dense["kernel"], dense["bias"]), other)  # no mere copy
    assert f"{PATH}/kernel_random_4_4" in again and "rank=2, seed=3) to block_sparse(0.5, " in notes[0]
    assert stays(want, spec, want, spec)


def test_packed_maps_are_unpacked(dense):
    packed = Packed24("float32").from_dense(dense["kernel"], dense["bias"])
    found, notes = moved(packed, Packed24("float32"), dense, Dense())
    np.testing.assert_array_equal(found[f"{PATH}/kernel"], prune(dense["kernel"]))
    assert notes == ["1 linear maps go from packed24(float32) to dense, exactly"]
