"""The linear maps of a model in another structure: packed for inference, densified for other projects, projected.

A pretrained dense model continues as a Monarch one by projection (Dao et al. 2022, arXiv:2204.00595, section 4.3), a
Monarch one as a dense one by multiplying its factors out (section 4.2, "reverse sparsification"). Optimizer states do
not follow: a gradient of the product says nothing unique about those of the factors.

Which parameters belong to a map, what structure they have and of what size it is, is asked of the model itself: a probe
takes the place of every spec, and the paths of its parameters are those of the maps.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.kernels.sparse24.packed import compress
from vit_jax.layers.linear import Dense, LinearSpec
from vit_jax.layers.linear.sparse24 import Packed24, Sparse24
from vit_jax.layers.linear.specs import FIELDS, TOKENS, Spec, name_of
from vit_jax.models.describe import describe, shapes
from vit_jax.trees import fields, flat, nested
from vit_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """What the maps of a model are to become.

    Attributes:
      spec: the structure.
      field: of which maps: one of ``specs.FIELDS`` or ``specs.TOKENS``; None for those of all ``specs.FIELDS``.
    """

    spec: LinearSpec
    field: str | None = None

    @classmethod
    def parse(cls, text: str) -> Request:
        """From ``"packed24(int8)"`` or ``"mlp_linear=packed24(int8)"``.

        Raises:
          UsageError: an unknown structure or field.
        """
        field, equals, rest = text.partition("=")
        if not equals or "(" in field:
            return cls(config.parse(Spec, text, "--linear"))
        config.lookup(dict.fromkeys((*FIELDS, TOKENS)), field.strip(), "field of --linear")
        return cls(config.parse(Spec, rest.strip(), f"--linear {field}"), field.strip())


def relinear(pretrained: Stored, requests: Sequence[Request]) -> tuple[Stored, list[str]]:
    """``pretrained`` with maps of other structures; a later request overrules an earlier one.

    Args:
      pretrained: any model; of its towers and decoder the maps change as well.
      requests: what is wanted. Fields that have the spec already stay as they are.

    Returns:
      The model with its new parameters in memory, and one human-readable note per change.

    Raises:
      UserError: a map cannot take the structure; the model has no such maps.
    """
    model, size = pretrained.model, pretrained.preprocess.size
    chosen = {
        path: request.spec
        for request in requests
        for path in _specs(model)
        if path.rpartition(".")[2] in (FIELDS if request.field is None else (request.field,))
    }
    if not chosen:
        raise UserError(f"{type(model).__name__} has no linear maps to choose for; leave --linear out.")
    changed, params = _with(model, chosen), dict(pretrained.params)
    done: dict[str, list[_Change]] = collections.defaultdict(list)
    now = linear_maps(changed, size)
    for path, (old, inputs, outputs) in linear_maps(model, size).items():
        new = now[path].spec
        if old == new:
            continue
        have = {k.removeprefix(f"{path}/"): params.pop(k).read() for k in list(params) if k.startswith(f"{path}/")}
        try:
            change = _change(have, old, new, inputs, outputs)
        except UserError as e:
            raise type(e)(f"{path}: {e}") from e
        params |= {f"{path}/{leaf}": Tensor.of(np.asarray(value)) for leaf, value in flat(change.params).items()}
        done[f"from {name_of(old)} to {name_of(new)}"].append(change)
    want = shapes(changed, size)
    assert {k: t.shape for k, t in params.items()} == want, "specs and layers disagree"
    notes = [note for how, c in done.items() for note in _notes(how, c, _pruned(c))]
    notes = notes or ["its linear maps are such already"]
    notes.append(f"parameters: {_bytes(pretrained.params):,} -> {_bytes(params):,} bytes")
    about = None
    if pretrained.config is not None:  # the run's own, but for its model
        about = {**pretrained.config, "model": {k: v for k, v in describe(changed).items() if k != "num_classes"}}
    kept = {path: params[path] for path in want}
    return dataclasses.replace(pretrained, model=changed, params=kept, config=about), notes


def restructure(
    have: Mapping[str, Any], theirs: Mapping[str, LinearMap], ours: Mapping[str, LinearMap], want: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """``have``, its linear maps brought into the structure that those of the same path have in another model.

    Args:
      have: path -> array.
      theirs: the maps of the model that ``have`` is of.
      ours: those of the model that is to take it.
      want: path -> array or shape, of the parameters of that model.

    Returns:
      A copy of ``have``, and one note for each way of restructuring: how many maps, how far from what they were (the
      Frobenius norm of the difference over that of the kernel). Maps that cannot be brought there stay as they are.
    """
    out, done = dict(have), collections.defaultdict[str, list[_Change]](list)
    for path in sorted(theirs.keys() & ours.keys()):
        there, here = _leaves(have, path), _leaves(want, path)
        old = Dense() if there.keys() - {"bias"} == {"kernel"} and there["kernel"].ndim == 2 else theirs[path].spec
        old, new = _stored(old), _stored(ours[path].spec)
        if old == new:
            continue
        try:
            change = _change({k: _wide(x) for k, x in there.items()}, old, new, *ours[path][1:])
        except KeyError:  # a leaf is missing, which whoever takes the parameters says
            continue
        params = {leaf: np.asarray(value) for leaf, value in flat(change.params).items()}
        fits = {leaf: x.shape for leaf, x in params.items()} == {leaf: tuple(x.shape) for leaf, x in here.items()}
        same = params.keys() == there.keys() and all(np.array_equal(x, there[leaf]) for leaf, x in params.items())
        if not fits or same:
            continue
        out = {k: x for k, x in out.items() if k.removeprefix(f"{path}/") not in there or not k.startswith(f"{path}/")}
        out |= {f"{path}/{leaf}": x for leaf, x in params.items()}
        done[f"from {name_of(old)} to {name_of(new)}"].append(change)
    return out, [note for how, changes in done.items() for note in _notes(how, changes)]


LOST = 0.5
"""Norm of what a map loses, as a share of its own, above which it is warned of."""
COMPUTED = ("implementation", "activations", "bits", "lam")
"""Fields of specs that say how a map is computed or trained, not what its parameters are."""


def _stored(spec: LinearSpec) -> LinearSpec:
    """``spec`` as far as it decides the parameters."""
    every = dataclasses.fields(spec) if dataclasses.is_dataclass(spec) else ()
    return dataclasses.replace(spec, **{f.name: f.default for f in every if f.name in COMPUTED}) if every else spec


def _wide(x: Any) -> np.ndarray:
    """Floats as float32, integers (of packed maps) as they are."""
    return np.asarray(x).astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x)


def _leaves(tree: Mapping[str, Any], parent: str) -> dict[str, Any]:
    """The parameters of the map at ``parent``, by their paths below it."""
    return {path.removeprefix(f"{parent}/"): x for path, x in tree.items() if path.startswith(f"{parent}/")}


@dataclasses.dataclass(frozen=True)
class _Change:
    """A map's new parameters; how far it is from what it was, relative to its norm; the share of weights cut off."""

    params: Params
    error: float
    pruned: float


def _change(have: Mapping[str, np.ndarray], old: LinearSpec, new: LinearSpec, inputs: int, outputs: int) -> _Change:
    wide = nested({k: jnp.asarray(v) for k, v in have.items()})
    kernel, bias = old.to_dense(wide)
    kernel = kernel[:inputs, :outputs].astype(jnp.float32)  # what was padded to fill blocks is cut
    if isinstance(old, Sparse24) and old.bits and isinstance(new, Packed24) and new.storage == "int8":
        params = _integers(wide["kernel"], old.bits)
        params |= {} if bias is None else {"bias": bias}
    else:
        params = new.from_dense(kernel, bias)
    before = np.asarray(kernel, np.float64)
    after = np.asarray(new.to_dense(params)[0], np.float64)[:inputs, :outputs]
    error = float(np.linalg.norm(after - before)) / max(float(np.linalg.norm(before)), 1e-30)
    return _Change(params, error, _excess(before) if isinstance(new, Sparse24 | Packed24) else 0.0)


def _excess(kernel: np.ndarray) -> float:
    """Share of the weights other than zero that are a third or fourth of their group."""
    counts = np.count_nonzero(kernel.reshape(-1, 4, kernel.shape[1]), axis=1)
    return float(np.maximum(counts - 2, 0).sum() / max(1, counts.sum()))


def _integers(kernel: jax.Array, bits: int) -> Params:
    """The levels that ``fake_quant`` rounds a masked kernel to, and its scale: what was trained.

    The scale may differ in its last bit, as compilers differ in how they divide.
    """
    values, index = compress(kernel, jnp.float32)
    top, peak = 2 ** (bits - 1) - 1, jnp.max(jnp.abs(values), 0)
    scale = jnp.where(peak > 0, peak / top, 1.0)
    steps = jnp.clip(jnp.round(values / scale[None]), -top, top).astype(jnp.int8)
    return {"kernel_values": steps, "kernel_index": index, "kernel_scale": scale}


def _notes(how: str, changes: Sequence[_Change], more: str = "") -> list[str]:
    errors = [c.error for c in changes]
    far = "exactly" if max(errors) < 1e-6 else f"off by {min(errors):.2g} to {max(errors):.2g} of their norm"
    notes = [f"{len(changes)} linear maps go {how}, {far}{more}"]
    if lost := sum(error > LOST for error in errors):
        notes.append(
            f"warning: {lost} of {len(changes)} linear maps lose most of their norm {how}, and with it what they have "
            "learned; train the model on before you use it, or take a structure with more parameters"
        )
    return notes


def _pruned(changes: Sequence[_Change]) -> str:
    shares = [c.pruned for c in changes]
    cut = f"; {min(shares):.0%} to {max(shares):.0%} of their weights were pruned away, train 'sparse24' before"
    return cut if max(shares) else ""


def _bytes(params: Tensors) -> int:
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in params.values())


class LinearMap(NamedTuple):
    """A linear map of a model: its structure, and the sizes of its input and output."""

    spec: LinearSpec
    inputs: int
    outputs: int


def linear_maps(model: nn.Module, size: int) -> dict[str, LinearMap]:
    """Path -> map, of every map whose structure is a field of ``model`` or of a module among its fields.

    Args:
      model: any model.
      size: side in pixels of the images that it takes.
    """
    found = _specs(model)
    probe = _with(model, {path: _Probe(number) for number, path in enumerate(found)})
    probed = ((*path.rpartition(f"/{LEAF}"), shape) for path, shape in shapes(probe, size).items())
    return {path: LinearMap(list(found.values())[int(number)], s[0], s[1]) for path, leaf, number, s in probed if leaf}


def specs(model: nn.Module) -> set[LinearSpec]:
    """The structures that maps of ``model`` have."""
    return set(_specs(model).values())


def _specs(model: Any, where: str = "") -> dict[str, LinearSpec]:
    """The specs among the fields of ``model`` and of the modules among them, by path: ``"text_tower.mlp_linear"``."""
    out: dict[str, LinearSpec] = {}
    for field, value in fields(model).items():
        if isinstance(value, LinearSpec):
            out[where + field] = value
        elif isinstance(value, nn.Module):
            out |= _specs(value, f"{where}{field}.")
    return out


def _with(model: Any, specs: Mapping[str, LinearSpec]) -> Any:
    """``model`` with others of its :func:`_specs`."""
    own: dict[str, Any] = {path: spec for path, spec in specs.items() if "." not in path}
    for part in dict.fromkeys(path.partition(".")[0] for path in specs if "." in path):
        inner = {path.removeprefix(f"{part}."): x for path, x in specs.items() if path.startswith(f"{part}.")}
        own[part] = _with(getattr(model, part), inner)
    return model.clone(**own)


@dataclasses.dataclass(frozen=True)
class _Probe(Dense):
    """A spec of maps that only say where they are and how large, and the ``number`` of their field."""

    number: int = 0

    def __call__(self, features: int, **kwargs: Any) -> Any:
        return _Probed(features, self.number, name=kwargs["name"])


LEAF = "here_is_a_map"


class _Probed(nn.Module):
    features: int
    number: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.param(f"{LEAF}{self.number}", nn.initializers.zeros, (x.shape[-1], self.features))
        return jnp.zeros((*x.shape[:-1], self.features), x.dtype)
