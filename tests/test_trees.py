"""Leaves by path, and back."""

import jax
import numpy as np

from vit_jax.trees import flat, names, nested, unflat


def test_there_and_back():
    tree = {"a": {"b": [np.ones(2), np.zeros(3)]}, "c": np.ones(())}
    found = flat(tree)
    assert list(found) == ["a/b/0", "a/b/1", "c"] and found["a/b/1"] is tree["a"]["b"][1]
    assert [names(path) for path, _ in jax.tree.leaves_with_path(tree)] == [tuple(path.split("/")) for path in found]
    again = unflat({k: k for k in found}, tree)
    assert again == {"a": {"b": ["a/b/0", "a/b/1"]}, "c": "c"}
    assert nested({"a/b": 1, "a/c/d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
