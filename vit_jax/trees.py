"""Trees of arrays as leaves by path, ``"encoder/block_0/mlp/mlp_in/kernel"``, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def fields(value: Any) -> dict[str, Any]:
    """Fields of a dataclass by name; of a Flax module without Flax's own, its parent and its name."""
    own = (f.name for f in dataclasses.fields(value))
    return {field: getattr(value, field) for field in own if field not in ("parent", "name")}


def name(path: Any) -> str:
    """What ``jax.tree_util`` gives as a path, ``"a/b/0"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(path: Any) -> tuple[str, ...]:
    """What ``jax.tree_util`` gives as a path, ``("a", "b", "0")``."""
    return tuple(name((key,)) for key in path)


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by path, ``"a/b/0" -> leaf``."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflat(values: Mapping[str, Any], like: Any) -> Any:
    """Inverse of :func:`flat`, in the structure of ``like``."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [values[name(path)] for path, _ in paths])


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path as nested dictionaries."""
    return traverse_util.unflatten_dict(dict(values), sep="/")
