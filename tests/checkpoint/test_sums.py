"""Sums see every bit and its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import checkpoint
from vit_jax.checkpoint import sums as summing
from vit_jax.sharding import MeshConfig, make_mesh


def mixed_sum(words):
    """The same number in Python's integers."""
    total = 0
    for place, x in enumerate(words.ravel().tolist()):
        x ^= place * 0x9E3779B1 % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        total += x ^ x >> 16
    return total % 2**32


@pytest.mark.parametrize("small", [0, 2**20], ids=["on the devices", "on the host"])
def test_checksums_do_not_depend_on_the_layout_and_see_every_bit(rng, monkeypatch, small):
    monkeypatch.setattr(summing, "SMALL", small)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spread = jax.device_put(x, NamedSharding(mesh, P("fsdp", "tensor")))
    sums = checkpoint.checksums({"a": jnp.asarray(x)})
    assert sums == checkpoint.checksums({"a": spread}) == {"a": mixed_sum(x.view(np.uint32))}
    for bit in (0, 17, 31):
        y = x.copy()
        y.view(np.uint32)[3, 3] ^= 1 << bit
        assert checkpoint.checksums({"a": jnp.asarray(y)}) != sums
    for dtype in ("bool", "bfloat16", "uint8"):
        leaf = jnp.asarray(x > 0).astype(dtype)
        words = (x > 0).astype(np.uint32) * (0x3F80 if dtype == "bfloat16" else 1)
        assert checkpoint.checksums({"a": leaf}) == {"a": mixed_sum(words)}
    old = int(x.view(np.uint32).astype(np.uint64).sum() % 2**32)  # what checkpoints before schema 3 hold
    assert checkpoint.checksums({"a": spread}, 2) == checkpoint.checksums({"a": x}, 1) == {"a": old}


@pytest.mark.parametrize("small", [0, 2**20], ids=["on the devices", "on the host"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],  # rows
        lambda x: x.T.reshape(x.shape),
        lambda x: np.roll(x, 1),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) // 2 == 9, -x, x),  # of a pair x, -x
    ],
    ids=["reversed", "transposed", "moved by one", "two signs"],
)
def test_checksums_see_the_order(rng, monkeypatch, small, change):
    monkeypatch.setattr(summing, "SMALL", small)
    x = rng.normal(size=(8, 8)).astype(np.float32)
    x.flat[19] = -x.flat[18]
    y = np.ascontiguousarray(change(x))
    assert sorted(x.flat) == sorted(y.flat)  # the same words, elsewhere
    assert checkpoint.checksums({"a": jnp.asarray(x)}) != checkpoint.checksums({"a": jnp.asarray(y)})
