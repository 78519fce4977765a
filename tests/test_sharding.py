"""The mesh, the partition of every leaf, and bytes per device, on 8 fake devices."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import processes
from vit_jax import models, sharding
from vit_jax.optim.optimizers import Adafactor
from vit_jax.sharding import MeshConfig, make_mesh, param_spec
from vit_jax.train.state import abstract_params
from vit_jax.types import UsageError


def mesh(replica=1, fsdp=1, tensor=1, n=8):
    return make_mesh(MeshConfig(replica, fsdp, tensor), jax.devices()[:n])


@pytest.mark.parametrize(
    ("sizes", "n", "shape"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)), ((1, -1, 1), 8, (1, 8, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((1, 1, 1), 1, (1, 1, 1)),
        ((2, 2, -1), 4, (2, 2, 1)), ((2, 3, 1), 6, (2, 3, 1)),
    ],
)  # fmt: skip
def test_mesh(sizes, n, shape):
    found = mesh(*sizes, n=n)
    assert tuple(found.shape.items()) == tuple(zip(sharding.AXES, shape, strict=True))
    assert found.devices.size == n


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (-1, -1, 8), (0, -1, 1), (4, 4, 1), (16, 1, 1)])
def test_mesh_that_does_not_fill_the_devices(sizes):
    with pytest.raises(UsageError) as e:
        mesh(*sizes)
    shape = "x".join(map(str, sizes))
    more = " (JAX_NUM_CPU_DEVICES=16 splits a CPU)" if 16 in (np.prod(sizes), max(sizes)) else ""
    assert str(e.value) == (
        f"mesh replica x fsdp x tensor = {shape} does not fill the 8 devices; set one axis to -1, the others to "
        f"numbers whose product divides 8{more}."
    )


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device: its number, slice and host, and its place in the slice's network."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "gpu"
    core_on_chip: int = 0
    device_kind: str = "NVIDIA H100"


def gpus(slices, hosts=1, each=8):
    """Devices of ``slices`` x ``hosts`` hosts, in an order that is none of theirs."""
    found = [Device(i, i // (hosts * each), i // each) for i in range(slices * hosts * each)]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def v6e(slices=1):
    """v6e:4x4: hosts of 2x2 chips."""
    places = [(x, y) for x in range(4) for y in range(4)]
    return [
        Device(100 * s + 4 * y + x, s, 4 * s + x // 2 + 2 * (y // 2), (x, y, 0), "tpu", device_kind="TPU v6 lite")
        for s in range(slices)
        for x, y in places
    ]


def places(found, by):
    """The slice or host of every device of a mesh."""
    return np.vectorize(lambda device: getattr(device, by), otypes=[int])(found.devices)


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [
        ((-1, 1, 1), gpus(2)), ((2, 4, 2), gpus(2)), ((4, 2, 2), gpus(2)), ((4, 1, 8), gpus(2, hosts=2)),
        ((2, 8, 2), v6e(2)), ((1, 4, 8), v6e(2)), ((1, 16, 1), gpus(2)), ((-1, 3, 8), gpus(3)), ((2, 16, 1), gpus(4)),
    ],
)  # fmt: skip
def test_slices_lie_along_replica_and_what_is_left_of_them_along_fsdp(sizes, devices):
    found = make_mesh(MeshConfig(*sizes), devices)
    assert {d.id for d in found.devices.flat} == {d.id for d in devices}
    where, slices = places(found, "slice_index"), len({d.slice_index for d in devices})
    assert (np.diff(where, axis=0) >= 0).all() and (np.diff(where, axis=1) >= 0).all()
    assert (where == where[:, :, :1]).all()  # never along tensor
    reach = max(len(set(row)) for row in where.transpose(0, 2, 1).reshape(-1, where.shape[1]))
    assert reach == slices // math.gcd(slices, where.shape[0])
    if reach > 1:
        (said,) = sharding.notes(found)
        assert said.startswith(
            f"mesh: fsdp={where.shape[1]} reaches over {reach} of {slices} slices, so that parameters"
        )
        return
    assert sharding.notes(found) == []
    inner = (where.shape[0] // slices, *where.shape[1:])  # what JAX makes of slices, told how they lie
    theirs = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices, allow_split_physical_axes=True)
    assert (np.vectorize(lambda d: d.slice_index)(theirs) == where).all()


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [
        ((4, 1, 4), v6e()), ((1, 4, 4), v6e()), ((-1, 1, 2), v6e()), ((2, 4, 2), v6e()), ((-1, 2, 4), v6e(3)),
        ((-1, 1, 8), gpus(1, hosts=4)), ((-1, 2, 4), gpus(1, hosts=3)),
    ],
)  # fmt: skip
def test_ranks_of_tensor_share_a_host(sizes, devices):
    where = places(make_mesh(MeshConfig(*sizes), devices), "process_index")
    assert (where == where[:, :, :1]).all()
    assert {int((where == host).sum()) for host in np.unique(where)} == {len(devices) // len(np.unique(where))}


def test_tensor_reaches_over_hosts_where_it_is_larger_and_never_over_slices():
    assert set(places(make_mesh(MeshConfig(2, 1, 8), v6e()), "process_index")[0, 0]) in ({0, 1}, {0, 2})
    with pytest.raises(UsageError) as e:
        make_mesh(MeshConfig(1, 1, 16), gpus(2))
    assert str(e.value) == (
        "mesh tensor=16 would reach over 2 slices of 8 devices, and every layer would wait for the network between "
        "them; make replica a multiple of 2 (replica=-1, and fsdp x tensor a divisor of 8)."
    )
    with pytest.raises(UsageError, match=r"^the 2 slices have 8, 7 devices; take equal ones\.$"):
        make_mesh(MeshConfig(), sorted(gpus(2), key=lambda d: d.id)[:-1])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2)])
def test_the_devices_of_one_host_keep_their_order(sizes):
    assert list(make_mesh(MeshConfig(*sizes)).devices.flat) == jax.devices()
    assert sharding.notes(make_mesh(MeshConfig(*sizes))) == []


BIG = 2**14


@pytest.mark.parametrize(
    ("shape", "logical", "sizes", "spec"),
    [
        ((256, 512), ("embed", "mlp"), (8, 1, 1), P(None, "tensor")),
        ((256, 512), ("embed", "mlp"), (1, 8, 1), P("fsdp", "tensor")),  # mlp is taken though tensor has size 1
        ((512, 256), ("embed", "embed2"), (1, 8, 1), P("fsdp", None)),  # the largest
        ((256, 512), (None, None), (1, 8, 1), P(None, "fsdp")),
        ((256, 512), (), (1, 8, 1), P(None, "fsdp")),  # names may be missing
        ((256, 512), ("embed", "mlp"), (2, 2, 2), P("fsdp", "tensor")),
        ((512, 256), ("mlp", "embed"), (2, 2, 2), P("tensor", "fsdp")),
        ((256, 510), ("embed", "mlp"), (1, 2, 4), P(None, "fsdp")),  # 4 does not divide 510, so it is free; 2 does
        ((255, 510), ("embed", "mlp"), (1, 2, 4), P(None, "fsdp")),
        ((255, 257), ("embed", None), (1, 8, 1), P(None, None)),  # nothing divides
        ((999, 128, 3), (None, None, None), (1, 8, 1), P(None, "fsdp", None)),  # the largest that divides
        ((127, 128), (None, None), (1, 8, 1), P(None, None)),  # too small to be worth gathering
        ((128, 128), (None, None), (1, 8, 1), P("fsdp", None)),  # ties go to the first
        ((BIG,), ("mlp",), (1, 4, 2), P("tensor")),
        ((), (), (1, 8, 1), P()),
    ],
)
def test_param_spec(shape, logical, sizes, spec):
    assert param_spec(shape, logical, mesh(*sizes)) == spec


def params():
    """Boxed shapes as of a model."""
    box = lambda shape, names: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)  # noqa: E731
    return {
        "mlp_in": {"kernel": box((128, 512), ("embed", "mlp")), "bias": box((512,), ("mlp",))},
        "norm": {"scale": jax.ShapeDtypeStruct((128,), jnp.float32)},
        "table": {"kernel": box((1000, 128), (None, "embed"))},
    }


def test_bytes_per_device_are_the_closed_form():
    m = mesh(2, 2, 2)
    boxed = params()
    shardings = sharding.param_shardings(boxed, m)
    plain = nn.unbox(boxed)
    closed = 4 * (128 * 512 // 4 + 512 // 2 + 128 + 1000 * 128 // 2)
    assert sharding.bytes_per_device(plain, shardings) == closed
    lines = sharding.describe(plain, shardings).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["mlp_in/kernel", "(128,", "512)", "('fsdp',", "'tensor')", f"{4 * 128 * 128:,}", "B"]
    assert lines[-1].split() == ["total", "per", "device", f"{closed:,}", "B"]

    held = jax.tree.map(lambda x, s: jax.device_put(np.zeros(x.shape, np.float32), s), plain, shardings)
    on_first = [
        s.data.nbytes for x in jax.tree.leaves(held) for s in x.addressable_shards if s.device == m.devices.flat[0]
    ]
    assert sum(on_first) == closed


@pytest.mark.parametrize("tx", [optax.adamw(1e-3), Adafactor().scale(), optax.chain(optax.clip(1.0), optax.trace(0.9))])
def test_copies_of_parameters_are_laid_out_alike(tx):
    """A leaf of the optimizer's state with a parameter's path and shape lies as that parameter; the rest everywhere."""
    m, boxed = mesh(2, 2, 2), params()
    plain, shardings = nn.unbox(boxed), sharding.param_shardings(boxed, m)
    state = jax.eval_shape(tx.init, plain)
    flat = {jax.tree_util.keystr(p): (x, s) for (p, x), s in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(shardings), strict=True)}  # fmt: skip
    found = sharding.shardings_like(state, plain, shardings, m)
    copies = 0
    for (path, leaf), got in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True):
        owner = next((v for k, v in flat.items() if jax.tree_util.keystr(path).endswith(k)), None)
        same = owner is not None and owner[0].shape == leaf.shape
        assert got == (owner[1] if same else NamedSharding(m, P())), jax.tree_util.keystr(path)
        copies += same
    assert copies >= 4


def test_factored_moments_are_replicated_and_momentum_is_not():
    m, boxed = mesh(2, 2, 2), params()
    plain, shardings = nn.unbox(boxed), sharding.param_shardings(boxed, m)
    state = jax.eval_shape(Adafactor().scale().init, plain)
    found = sharding.shardings_like(state, plain, shardings, m)
    factored, momentum = found[0], found[1]
    assert factored.v_row["mlp_in"]["kernel"].spec == P()
    assert momentum.ema["mlp_in"]["kernel"].spec == P("fsdp", "tensor")


def test_longer_paths_win():
    """ "pool/head/kernel" is not "head/kernel", though its path ends so."""
    m = mesh(1, 8, 1)
    leaf = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    tree = {"head": {"kernel": leaf}, "pool": {"head": {"kernel": leaf}}}
    a, b = NamedSharding(m, P("fsdp")), NamedSharding(m, P(None, "fsdp"))
    layouts = {"head": {"kernel": a}, "pool": {"head": {"kernel": b}}}
    assert sharding.shardings_like({"mu": tree}, tree, layouts, m) == {"mu": layouts}


def test_put_splits_rows_over_replica_and_fsdp(rng):
    m = mesh(2, 2, 2)
    batch = {"image": rng.integers(0, 255, (8, 3, 3)).astype(np.uint8), "label": np.arange(8, dtype=np.int32)}
    out = sharding.put(batch, m)
    for key, value in batch.items():
        np.testing.assert_array_equal(out[key], value)
        assert out[key].dtype == value.dtype
        assert {s.data.shape[0] for s in out[key].addressable_shards} == {2}
    by_device = {s.device: s.index[0].start or 0 for s in out["label"].addressable_shards}
    assert [by_device[d] for d in m.devices.flat] == [0, 0, 2, 2, 4, 4, 6, 6]  # tensor devices share their rows


def test_the_layout_that_has_everything_on_each_device():
    mesh = make_mesh(MeshConfig(replica=4, fsdp=2))
    layout = sharding.replicated_like(sharding.put({"x": np.zeros(16, np.float32)}, mesh)["x"])
    assert layout is not None and layout.is_fully_replicated and layout.mesh == mesh
    assert sharding.replicated_like(np.zeros(2)) is None and sharding.replicated_like(jnp.zeros(2)) is None


def test_constrain():
    x = jnp.zeros((8, 16))
    assert sharding.constrain(x, "batch", "mlp") is x  # no mesh
    with jax.set_mesh(mesh(n=1)):
        assert sharding.constrain(x, "batch", "mlp") is x
    m = mesh(2, 2, 2)
    with jax.set_mesh(m):
        y = jax.jit(lambda x: sharding.constrain(x, "batch", "mlp"))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(m, P(("replica", "fsdp"), "tensor")), 2)
    assert math.prod(y.sharding.shard_shape(y.shape)) == 8 * 16 // 8


def test_rows_stay_on_their_devices_and_sums_are_added_up(rng):
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((8, 3), (3,)))
    f = sharding.over_batch(lambda x, w: ({"y": x * w[None]}, {"sum": jnp.sum(x, 0)}), mesh(2, 2, 2), (True, False))
    rows, sums = jax.jit(f)(x, w)
    np.testing.assert_allclose(rows["y"], x * w[None], rtol=1e-6)
    np.testing.assert_allclose(sums["sum"], x.sum(0), rtol=1e-5, atol=1e-6)


def test_large_replicated_leaves_are_named():
    m = mesh(1, 8, 1)
    tree = {"odd": jax.ShapeDtypeStruct((1031, 1033), "float32"), "even": jax.ShapeDtypeStruct((1024, 1033), "float32")}
    shardings = {k: NamedSharding(m, sharding.param_spec(x.shape, (), m)) for k, x in tree.items()}
    assert sharding.replicated(tree, shardings, m) == ["odd"]
    one = mesh(8, 1, 1)
    assert sharding.replicated(tree, {k: NamedSharding(one, P()) for k in tree}, one) == []


@pytest.mark.parametrize(
    ("shape", "sizes", "most", "says"),
    [
        ((4099, 4099), (1, 8, 1), 64, "fsdp=8 splits none of its dimensions; accept it with"),
        ((4099, 4100), (1, 8, 1), 64, "fsdp=8 splits none of its dimensions; --config.mesh.fsdp=4 would, or"),
        ((4099, 4100), (2, 1, 4), 64, "tensor=4 splits none of its dimensions; --config.mesh.fsdp=2 would, or"),
        ((4099, 4099), (2, 2, 2), 64, "fsdp=2 and tensor=2 splits none of its dimensions; accept it with"),
        ((4099, 4099), (1, 8, 1), 65, None), ((4099, 4099), (8, 1, 1), 64, None), ((4099, 4104), (1, 8, 1), 64, None),
        ((1031, 1033), (1, 8, 1), 64, None),
    ],
)  # fmt: skip
def test_a_large_leaf_that_nothing_splits_is_an_error_that_names_it(shape, sizes, most, says):
    m = mesh(*sizes)
    tree = {"head": {"kernel": jax.ShapeDtypeStruct(shape, "float32")}, "step": jax.ShapeDtypeStruct((), "int32")}
    shardings = jax.tree.map(lambda x: NamedSharding(m, sharding.param_spec(x.shape, (), m)), tree)
    if says is None:
        sharding.check_replicated(tree, shardings, m, most)
        return
    with pytest.raises(UsageError) as e:
        sharding.check_replicated(tree, shardings, m, most)
    assert str(e.value).startswith(
        f"head/kernel of shape 4099x{shape[1]} (65 MiB) would be whole on each of 8 devices: {says}"
    )
    assert str(e.value).endswith("--config.mesh.most_replicated=65.")


def shallow(model):
    """Each of its towers with one block: the shapes of parameters are those of every block."""
    parts = {name: getattr(model, name, None) for name in ("image_tower", "text_tower", "decoder")}
    found = {name: shallow(part) for name, part in parts.items() if part is not None}
    one = {"depth": 1} if hasattr(model, "depth") else {}
    return model.clone(**found, **one, **({"depths": (1,) * len(model.depths)} if hasattr(model, "depths") else {}))


SIZED = {name: {} for name in models.MODELS if name not in models.FAMILIES}
SOON = (
    "vit_g14", "vit_r26_s32", "mixer_l16", "m2_vit_b16", "hornet_large_gf", "siglip_vit_so400m14", "lit_vit_b16",
    "coca_vit_l14",
)  # fmt: skip
MAPS = ("monarch(4)", "block_diagonal(4)", "low_rank(64)", "sparse24", "packed24", "block_sparse(0.25)", "int8")


@pytest.mark.first(6)
@pytest.mark.parametrize(
    ("name", "linear"),
    [
        *(pytest.param(name, None, marks=() if name in SOON else pytest.mark.slow) for name in SIZED),
        *(("vit_b16", linear) for linear in MAPS),
    ],
)
def test_every_model_is_split(name, linear):
    """On fsdp=4 x tensor=2 nothing of 4 MiB is whole on a device, and width is split wherever it divides."""
    fields = {} if linear is None else {f"{part}_linear": linear for part in ("qkv", "out", "mlp")}
    model, m = shallow(models.create(name, **fields)), mesh(1, 4, 2)
    boxed = abstract_params(model, model.inputs(224))
    plain, shardings = nn.unbox(boxed), sharding.param_shardings(boxed, m)
    assert sharding.replicated(plain, shardings, m) == []
    sharding.check_replicated(plain, shardings, m, 4)
    sizes = {True: 0, False: 0}
    for x in jax.tree.leaves(plain):
        sizes[x.size >= sharding.FSDP_MIN_SIZE] += math.prod(x.shape) * x.dtype.itemsize
    # of large ones a quarter, and an eighth of what tensor splits
    assert sharding.bytes_per_device(plain, shardings) < 0.27 * sizes[True] + sizes[False]
    split = 0
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        names = getattr(leaf, "names", ())
        wide = [
            i for i, axis in enumerate(names) if sharding.RULES.get(axis) == "tensor" and leaf.value.shape[i] % 2 == 0
        ]
        spec = sharding.param_spec(leaf.value.shape, names, m) if names else P()
        assert spec.index("tensor") == wide[0] if wide else "tensor" not in spec
        split += bool(wide)
    assert split


def test_an_axis_is_used_once():
    assert sharding.param_spec((8, 8), ("mlp", "heads"), mesh(1, 1, 8)) == P("tensor", None)


def test_the_platform_is_that_of_the_mesh_in_context(monkeypatch):
    """A program traced for a topology that is not here is that topology's."""
    assert sharding.platform() == jax.default_backend() == "cpu"
    with jax.set_mesh(mesh(8)):
        assert sharding.platform() == "cpu"
    chip = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    elsewhere = jax.sharding.AbstractMesh((4,), ("fsdp",), abstract_device=chip)
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert sharding.platform() == "tpu"


ROWS = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from vit_jax.launch import runtime
watch = runtime.join()
from tests import processes
from vit_jax import sharding
d = jax.devices()
x = np.arange(24, dtype=np.int32).reshape(8, 3)
for order, sizes in (((0, 1, 2, 3), (4, 1, 1)), ((0, 2, 1, 3), (2, 2, 1)), ((3, 0, 2, 1), (1, 4, 1)),
                     ((0, 2, 1, 3), (2, 1, 2)), ((0, 1, 2, 3), (1, 1, 4)), ((0, 1, 2, 3), (1, 2, 2))):
    mesh = Mesh(np.array([d[i] for i in order]).reshape(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    rows = sharding.host_rows(mesh, 8)
    whole = sharding.put({"x": x[rows]}, mesh)["x"]
    full = jax.jit(lambda x: x * 1, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(whole)
    assert whole.shape == x.shape and np.array_equal(full, x), (order, sizes, np.asarray(full))
    said = sharding.gather_hosts(mesh)(np.array([7, watch.index], np.int32))
    assert np.asarray(said).tolist() == [[7, 0], [7, 1]]
    print(order, sizes, rows.tolist())
placed = sharding.place({"w": x}, {"w": sharding.data_sharding(mesh)})["w"]
assert np.array_equal(jax.jit(lambda x: x * 1, out_shardings=sharding.replicated_like(placed))(placed), x)
runtime.part(watch)
"""


@pytest.mark.slow
def test_rows_of_hosts_follow_from_the_mesh_in_any_order_of_devices():
    with processes.started(2, code=ROWS, devices=2) as hosts:
        first, second = processes.ended(hosts, 120)
    assert first.status == second.status == 0, first.output + second.output
    assert "(0, 2, 1, 3) (2, 2, 1) [0, 1, 4, 5]" in first.output and "(2, 2, 1) [2, 3, 6, 7]" in second.output
    for shared in ("(1, 1, 4) [0, 1, 2, 3, 4, 5, 6, 7]", "(0, 2, 1, 3) (2, 1, 2) [0, 1, 2, 3, 4, 5, 6, 7]"):
        assert shared in first.output and shared in second.output


def test_what_hosts_have_together_comes_in_full():
    mesh = make_mesh(MeshConfig(1, -1, 1))
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    tree = {"x": jax.device_put(x, NamedSharding(mesh, P("fsdp"))), "step": jnp.asarray(3), "host": np.float32(2)}
    found = sharding.whole(tree, True)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert np.array_equal(found["x"], x) and found["step"] == 3 and found["host"] == 2
    assert sharding.whole(tree, False) == {"x": None, "step": None, "host": None}
