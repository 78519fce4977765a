"""The device mesh, the one table from logical to mesh axes, and FSDP.

The mesh always has the axes ``("replica", "fsdp", "tensor")``, size 1 when unused, so that no code branches on what is
in use. Layers name the logical axes of their parameters; :data:`RULES` maps those to ``tensor``; ``fsdp`` then takes
the largest dimension that is still free. The batch is split over ``replica`` and ``fsdp``.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import trees
from vit_jax.checks import Checked, Range, physical_memory
from vit_jax.types import Array, UsageError

AXES = ("replica", "fsdp", "tensor")
BATCH = ("replica", "fsdp")
RULES = {"batch": BATCH, "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
FSDP_MIN_SIZE = 2**14
"""Leaves with fewer elements are replicated: gathering them costs more than keeping them."""


Axis = Annotated[int, Range(-1, 2**20)]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """Sizes of the mesh axes; one of them may be -1, "whatever devices are left".

    Attributes:
      replica: devices that hold whole copies of the parameters and share the batch.
      fsdp: devices over which parameters and optimizer state are split; they share the batch, too.
      tensor: devices over which each layer's width is split.
      most_replicated: MiB of the largest array that each device may hold in full although ``fsdp`` or ``tensor`` is to
        split arrays; a larger one, of which no dimension divides, is an error before the first step.
    """

    replica: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1
    most_replicated: Annotated[int, Range(0, 2**20)] = 64


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over all ``devices`` (default: every device of every host).

    Slices (of TPUs, or hosts of GPUs), which only a data-center network joins, lie one after the other along
    ``replica``, which exchanges one gradient a step, and those left over along ``fsdp``. Ranks of ``tensor`` share a
    host where one has room for them, so that no two hosts read the same rows.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or ``tensor`` would reach over slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.replica, config.fsdp, config.tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        shape = "x".join(map(str, (config.replica, config.fsdp, config.tensor)))
        n, wanted = len(devices), abs(math.prod(sizes))
        cpus = f" (JAX_NUM_CPU_DEVICES={wanted} splits a CPU)" if devices[0].platform == "cpu" and wanted > n else ""
        raise UsageError(
            f"mesh replica x fsdp x tensor = {shape} does not fill the {n} devices; set one axis to -1, the others to "
            f"numbers whose product divides {n}{cpus}."
        )
    return Mesh(_over_slices((sizes[0], sizes[1], sizes[2]), devices), AXES, axis_types=(AxisType.Auto,) * 3)


Sizes = tuple[int, int, int]


def _over_slices(sizes: Sizes, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the shape of the mesh."""
    slices = _groups(devices, "slice_index")
    outer = _spread(sizes, len(slices))
    if len({len(s) for s in slices}) > 1:
        raise UsageError(
            f"the {len(slices)} slices have {', '.join(str(len(s)) for s in slices)} devices; take equal ones."
        )
    if outer[2] > 1:
        raise UsageError(
            f"mesh tensor={sizes[2]} would reach over {len(slices)} slices of {len(slices[0])} devices, and every "
            f"layer would wait for the network between them; make replica a multiple of {len(slices)} (replica=-1, and "
            f"fsdp x tensor a divisor of {len(slices[0])})."
        )
    return _nested(sizes, outer, slices, _over_hosts)


def _over_hosts(sizes: Sizes, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices of one slice: in JAX's order for its network, or host by host where that tears ``tensor`` apart."""
    found = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    hosts = _groups(devices, "process_index")
    outer, equal = _spread(sizes, len(hosts)), len({len(h) for h in hosts}) == 1
    if _reach(found, 2, "process_index") == 1 or outer[2] > 1 or not equal:
        return found
    order = functools.partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
    return _nested(sizes, outer, hosts, order)


def _groups(devices: Iterable[jax.Device], by: str) -> list[list[jax.Device]]:
    """Devices with the same attribute, in its order."""
    found = collections.defaultdict(list)
    for device in devices:
        found[getattr(device, by, None) or 0].append(device)
    return [found[key] for key in sorted(found)]


def _spread(sizes: Sizes, groups: int) -> Sizes:
    """How many of ``groups`` groups of devices follow each other along every axis: as many as go along the first."""
    replica = math.gcd(sizes[0], groups)
    fsdp = math.gcd(sizes[1], groups // replica)
    return replica, fsdp, groups // (replica * fsdp)


def _nested(
    sizes: Sizes, outer: Sizes, groups: Sequence[Sequence[jax.Device]], order: Callable[..., np.ndarray]
) -> np.ndarray:
    """The mesh of meshes: that of each group in its ``order``, the groups side by side."""
    inner = tuple(size // out for size, out in zip(sizes, outer, strict=True))
    blocks = np.stack([order(inner, group) for group in groups]).reshape(*outer, *inner)
    return blocks.transpose(0, 3, 1, 4, 2, 5).reshape(sizes)


def _reach(devices: np.ndarray, axis: int, by: str) -> int:
    """The most slices or hosts that the devices in one row along ``axis`` belong to."""
    rows = np.moveaxis(devices, axis, -1).reshape(-1, devices.shape[axis])
    return max(len(_groups(row, by)) for row in rows)


def notes(mesh: Mesh) -> list[str]:
    """What is slow about a mesh and could be otherwise, one sentence each."""
    slices = len(_groups(list(mesh.devices.flat), "slice_index"))
    reach = _reach(mesh.devices, 1, "slice_index")
    if reach == 1:
        return []
    return [
        f"mesh: fsdp={mesh.shape['fsdp']} reaches over {reach} of {slices} slices, so that parameters are gathered "
        f"over the slow network between them in every step; with replica a multiple of {slices} they stay in a slice."
    ]


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins the layout of an activation by logical axis names, one per dimension; without a mesh ``x`` itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(RULES.get(name) if name else None for name in logical)))


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every batch array: rows over ``replica`` and ``fsdp``."""
    return NamedSharding(mesh, P(BATCH))


def replicated_like(x: Any) -> NamedSharding | None:
    """The layout on the mesh of ``x``, a pytree, that has everything on each device; None where it is on no mesh."""
    layout = getattr(jax.tree.leaves(x)[0], "sharding", None)
    return NamedSharding(layout.mesh, P()) if isinstance(layout, NamedSharding) else None


def param_spec(shape: tuple[int, ...], logical: Sequence[str | None], mesh: Mesh) -> P:
    """One leaf's partition: logical axes by :data:`RULES` where the size divides, then the largest free one to fsdp."""
    axes: list[Any] = [RULES.get(name) if name else None for name in (*logical, *[None] * (len(shape) - len(logical)))]
    axes = [a if a and shape[i] % mesh.shape[a] == 0 and a not in axes[:i] else None for i, a in enumerate(axes)]
    if mesh.shape["fsdp"] > 1 and math.prod(shape) >= FSDP_MIN_SIZE:
        free = [i for i, a in enumerate(axes) if a is None and shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*axes)


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings for abstract parameters as ``jax.eval_shape(model.init, ...)`` returns them, logical names boxed in."""

    def one(leaf: Any) -> NamedSharding:
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        value = leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf
        return NamedSharding(mesh, param_spec(value.shape, names, mesh))

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def over_batch(f: Callable[..., Any], mesh: Mesh, split: Sequence[bool]) -> Callable[..., Any]:
    """``f`` of the rows of each device, run on all of them.

    Args:
      f: returns (a tree of arrays split along the batch, a tree of sums to be added over the devices).
      mesh: the devices.
      split: whether each argument of ``f`` is split along the batch; the others every device has whole.
    """

    def local(*args: Any) -> Any:
        rows, sums = f(*args)
        return rows, jax.tree.map(lambda x: jax.lax.psum(x, BATCH), sums)

    specs = tuple(P(BATCH) if s else P() for s in split)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(BATCH), P()), check_vma=False)


def platform() -> str:
    """What the program that is being traced will run on: the devices of the mesh in context, else JAX's default ones.

    Returns:
      "cpu", "gpu" or "tpu". A step that is compiled for a TPU's topology on a machine without one is a TPU's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shardings_like(tree: Any, params: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that holds copies of ``params``, such as an optimizer's: equal path endings share a layout.

    A leaf belongs to the parameter whose path is the end of its own path and whose shape is its own; everything else
    (counters, factored moments) is replicated.
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    specs = jax.tree.leaves(params_shardings)
    table = {(trees.names(path), leaf.shape): spec for (path, leaf), spec in zip(flat, specs, strict=True)}
    depth = max((len(k[0]) for k in table), default=0)
    replicated = NamedSharding(mesh, P())

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = trees.names(path)
        endings = (names[i:] for i in range(max(0, len(names) - depth), len(names)))
        return next((table[(e, leaf.shape)] for e in endings if (e, leaf.shape) in table), replicated)

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(tree: Any, shardings: Any, mesh: Mesh) -> list[str]:
    """Paths of the leaves of 4 MiB and more that every device holds in full although the mesh is to split them."""
    return [path for path, _ in _replicated(tree, shardings, mesh, 4 * 2**20)]


def _replicated(tree: Any, shardings: Any, mesh: Mesh, least: int) -> Iterator[tuple[str, Any]]:
    """Path and leaf of those of ``least`` bytes and more that every device holds in full on a mesh that splits some."""
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return
    for (path, x), s in zip(trees.flat(tree).items(), jax.tree.leaves(shardings), strict=True):
        if s.is_fully_replicated and math.prod(x.shape) * x.dtype.itemsize >= least:
            yield path, x


def check_replicated(tree: Any, shardings: Any, mesh: Mesh, most: int) -> None:
    """Raises UsageError if every device would hold more than ``most`` MiB of one leaf that the mesh is to split."""
    for path, x in _replicated(tree, shardings, mesh, most * 2**20 + 1):
        asked = " and ".join(f"{axis}={mesh.shape[axis]}" for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1)
        sizes = [k for k in range(2, mesh.size + 1) if mesh.size % k == 0 and any(n % k == 0 for n in x.shape)]
        better = min(sizes, key=lambda k: abs(k - mesh.shape["fsdp"]), default=None)
        mib = -(-math.prod(x.shape) * x.dtype.itemsize // 2**20)
        raise UsageError(
            f"{path} of shape {'x'.join(map(str, x.shape))} ({mib} MiB) would be whole on each of {mesh.size} devices: "
            f"{asked} splits none of its dimensions; "
            + (f"--config.mesh.fsdp={better} would, or " if better else "")
            + f"accept it with --config.mesh.most_replicated={mib}."
        )


def memory(device: jax.Device) -> int:
    """Bytes that a device of this host can hold; CPU devices share the machine's."""
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return limit or physical_memory() // jax.local_device_count()


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of ``tree`` (arrays or shapes) under ``shardings``."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def describe(tree: Any, shardings: Any) -> str:
    """A table: path, shape, partition and bytes per device of every leaf."""
    rows = []
    for (path, x), s in zip(trees.flat(tree).items(), jax.tree.leaves(shardings), strict=True):
        size = math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        rows.append(f"{path:60s} {x.shape!s:22s} {tuple(s.spec)!s:28s} {size:>12,d} B")
    return "\n".join([*rows, f"{'total per device':112s} {bytes_per_device(tree, shardings):>12,d} B"])


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a global batch the devices of this host hold, ascending: int64[rows].

    It follows from the mesh alone. Hosts whose devices share the rows of ``replica`` and ``fsdp``, where ``tensor``
    reaches over hosts, hold the same ones.
    """
    held = data_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def put(batch: Mapping[str, Array], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch, as :func:`host_rows` names them -> global arrays sharded over the mesh."""
    sharding = data_sharding(mesh)
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    here = len(host_rows(mesh, shards))

    def whole(x: Array) -> jax.Array:
        assert len(x) % here == 0, (x.shape, here)
        size = len(x) // here * shards
        rows = host_rows(mesh, size)

        def of(index: Any) -> Any:
            first, last, _ = index[0].indices(size)
            begin = np.searchsorted(rows, first)
            return x[begin : begin + last - first]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, of)

    return {k: whole(v) for k, v in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every host has in full -> global arrays under ``shardings``, each device given its part alone.

    What is a ``jax.ShapeDtypeStruct`` stays one. ``jax.device_put`` would first send every array through the network,
    to compare it between hosts.
    """

    def one(x: Any, layout: NamedSharding) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def whole(tree: Any, keep: bool) -> Any:
    """Global arrays -> NumPy arrays in full where ``keep``, else None, the opposite of :func:`place`.

    All hosts call it; one array at a time is in full on their devices.
    """

    def one(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            assert isinstance(x.sharding, NamedSharding)
            x = jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
        if isinstance(x, jax.Array):
            x = x.addressable_data(0) if x.is_fully_replicated else x
        return np.asarray(x) if keep else None

    return jax.tree.map(one, tree)


def gather_hosts(mesh: Mesh) -> Callable[[np.ndarray], Array]:
    """``f(values int32[n]) -> int32[hosts, n]``: what every host gave, in the order of hosts, the same on all of them.

    Every host calls ``f`` as often as the others, with as many values. Nobody waits: on several hosts the result is an
    array on the devices.
    """
    hosts = jax.process_count()
    if hosts == 1:
        return lambda values: values[None]
    owners = [device.process_index for device in mesh.devices.flat]
    firsts = np.array([owners.index(host) for host in range(hosts)])
    layout, whole = NamedSharding(mesh, P(AXES)), NamedSharding(mesh, P())
    run = jax.jit(lambda x: x[firsts], out_shardings=whole)

    def gather(values: np.ndarray) -> jax.Array:
        shape = (mesh.size, len(values))
        return run(jax.make_array_from_callback(shape, layout, lambda _: values[None]))  # one row a device

    return gather
