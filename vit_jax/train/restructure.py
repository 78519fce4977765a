"""Linear maps of one structure put into a model that has another: dense to sparse, and back.

A pretrained dense model continues as a Monarch one by projection (Dao et al. 2022, arXiv:2204.00595, section 4.3), a
Monarch one as a dense one by multiplying its factors out (section 4.2, "reverse sparsification"). Optimizer states do
not follow: a gradient of the product says nothing unique about those of the factors.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.layers.block_sparse import BlockSparse
from vit_jax.layers.linear import Dense
from vit_jax.layers.sparse24 import Sparse24
from vit_jax.layers.specs import name_of, spec_of

Flat = dict[str, Any]


def restructure(have: Mapping[str, Any], want: Mapping[str, Any]) -> tuple[Flat, list[str]]:
    """``have``, its linear maps brought into the structure that those of the same path have in ``want``.

    Args:
      have: path -> array.
      want: path -> array or shape, of the model that is to take them.

    Returns:
      A copy of ``have``, and one note for each way of restructuring: how many maps, how far from what they were (the
      Frobenius norm of the difference over that of the kernel). Maps that cannot be brought there stay as they are.
    """
    out, errors = dict(have), collections.defaultdict[str, list[float]](list)
    for parent in sorted({path.rpartition("/")[0] for path in want if path.rpartition("/")[2].startswith("kernel")}):
        found = _map(have, want, parent)
        if found is None:
            continue
        how, error, new = found
        for leaf in _leaves(have, parent):
            del out[f"{parent}/{leaf}"]
        out |= {f"{parent}/{leaf}": np.asarray(value) for leaf, value in new.items()}
        errors[how].append(error)
    notes = []
    for how, e in errors.items():
        far = "exactly" if max(e) < 1e-6 else f"off by {min(e):.2g} to {max(e):.2g} of their norm"
        notes.append(f"{len(e)} linear maps go {how}, {far}")
    return out, notes


def _map(have: Mapping[str, Any], want: Mapping[str, Any], parent: str) -> tuple[str, float, dict[str, Any]] | None:
    """(how, relative error, parameters) of the map at ``parent``, or None if it stays as it is.

    A model whose masks are frozen is known by its own kernels: they start with the zeros that they will keep.
    """
    there, here = _leaves(have, parent), _leaves(want, parent)
    shapes = {leaf: tuple(x.shape) for leaf, x in here.items()}
    old, new = spec_of({leaf: tuple(x.shape) for leaf, x in there.items()}), spec_of(shapes)
    if new == Dense():
        new = _frozen(here["kernel"], there.get("kernel")) or new
    if old is None or new is None or old == new:
        return None
    wide = {leaf: np.asarray(x).astype(np.float32) for leaf, x in there.items()}
    kernel, bias = old.to_dense(wide)
    if isinstance(new, Dense | Sparse24 | BlockSparse):  # what was padded to fill blocks is cut
        size = new.size(shapes) if isinstance(new, BlockSparse) else shapes["kernel"]
        kernel = kernel[: size[0], : size[1]]
        if kernel.shape != size:
            return None
    params = new.from_dense(kernel, bias)
    if {leaf: tuple(np.shape(x)) for leaf, x in params.items()} != shapes:
        return None
    dense = np.asarray(kernel, np.float64)
    again = np.asarray(new.to_dense(params)[0], np.float64)[: dense.shape[0], : dense.shape[1]]
    error = float(np.linalg.norm(again - dense)) / max(float(np.linalg.norm(dense)), 1e-30)
    return f"from {name_of(old)} to {name_of(new)}", error, params


def _leaves(tree: Mapping[str, Any], parent: str) -> dict[str, Any]:
    """The parameters of the map at ``parent``, by name."""
    found = ((path, path.rpartition("/")) for path in tree)
    return {name: tree[path] for path, (at, _, name) in found if at == parent and re.match("kernel|bias$", name)}


def _frozen(kernel: Any, before: Any) -> Sparse24 | BlockSparse | None:
    """The spec of a model whose fresh ``kernel [in, out]`` has the zeros of a frozen mask, unless ``before`` has it."""
    if _kept(kernel) == {2} and max(_kept(before), default=0) > 2:
        return Sparse24(mask="frozen")
    spec = BlockSparse.of_pruned(kernel) if isinstance(kernel, np.ndarray | jax.Array) else None
    if spec is None or before is None or before.shape != kernel.shape:
        return spec
    return None if np.array_equal(spec.from_dense(before, None)["kernel"], before) else spec


def _kept(kernel: Any) -> set[int]:
    """How many of every four inputs of ``kernel [in, out]`` are not zero; nothing of shapes and other kernels."""
    if not isinstance(kernel, np.ndarray | jax.Array) or kernel.ndim != 2 or kernel.shape[0] % 4:
        return set()
    groups = np.asarray(kernel).reshape(-1, 4, kernel.shape[1])
    return set(np.unique(np.count_nonzero(groups, axis=1)).tolist())
