"""Who runs on a CPU, and what is said of who does not."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.block_sparse import block_sparse, mosaic_tpu, patterns
from vit_jax.kernels.block_sparse.crossover import dense_is_faster


def args(rows, n, m, block, density, dtype="float32", random=False):
    per = patterns.count(density, n // block)
    index = (
        patterns.random(n // block, m // block, per, 0) if random else patterns.butterfly(n // block, m // block, per)
    )
    return jax.ShapeDtypeStruct((rows, n), dtype), jax.ShapeDtypeStruct((per, block, m), "float32"), index, None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_shapes(dtype):
    wins = [(32, 0.25, False), (128, 0.25, False), (128, 0.25, True)] + [(64, 0.5, False)] * (dtype == "float32")
    lost = [(32, 0.5, False), (32, 0.25, True)] + [(64, 0.5, False)] * (dtype == "bfloat16")
    for block, density, random in wins + lost:
        reason = dense_is_faster(*args(1576, 768, 3072, block, density, dtype, random))
        assert (reason is None) == ((block, density, random) in wins)
        assert dense_is_faster(*args(197, 768, 3072, block, density, dtype, random)) is None
    assert dense_is_faster(*args(1576, 3072, 768, 32, 0.25, dtype)) is None


def test_reasons():
    assert dense_is_faster(*args(1576, 768, 3072, 32, 0.5)) == (
        "50% of the weights in blocks of 32 move 3.2 times the activations, which on a CPU is slower than the dense "
        "map from 512 rows on"
    )
    x, kernel, index, _ = args(5, 768, 3072, 32, 0.25)
    assert "known only at run time" in dense_is_faster(x, kernel, jax.ShapeDtypeStruct(index.shape, index.dtype), None)
    whole = args(5, 256, 256, 128, 1.0)
    assert dense_is_faster(*whole) == mosaic_tpu.slower_reason(*whole) == "every block is there"
    assert mosaic_tpu.slower_reason(*args(5, 256, 256, 128, 0.5)) is None


def test_elsewhere_only_whole_maps_are_dense(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert (
        dense_is_faster(*args(1576, 768, 3072, 32, 0.5)) is None
        and dense_is_faster(*args(5, 64, 64, 32, 1.0)) is not None
    )


def test_on_a_gpu_small_blocks_are_dense(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert dense_is_faster(*args(1576, 768, 3072, 64, 0.25, "bfloat16")) == (
        "blocks of 64, below 128, are slower on a GPU than the dense map from 512 rows on"
    )
    for rows, block, dtype in ((511, 64, "bfloat16"), (1576, 128, "bfloat16"), (1576, 64, "float32")):
        assert dense_is_faster(*args(rows, 768, 3072, block, 0.25, dtype)) is None


def test_it_is_said_once(caplog, rng):
    dispatch.say.cache_clear()
    x, kernel = rng.standard_normal((3, 8)).astype("float32"), rng.standard_normal((1, 4, 8)).astype("float32")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            block_sparse(x, kernel, jnp.asarray([[0], [1]]))
        block_sparse(x, kernel, np.array([[0], [1]]))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("block-sparse product runs as 'dense'; not 'xla': which blocks are there")
