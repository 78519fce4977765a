"""When the dense product wins, and that it then runs."""

import logging

import jax
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.monarch import crossover, monarch, xla


@pytest.mark.parametrize(
    ("platform", "dtype", "rows", "nblocks", "dense"),
    [
        ("cpu", "float32", 1024, 2, "have 100% of the dense map's weights, which on a CPU is slower"),
        ("cpu", "bfloat16", 1023, 2, None),
        ("cpu", "float32", 4096, 4, None),
        ("gpu", "bfloat16", 1024, 4, "have 50% of the dense map's weights, which on a GPU is slower"),
        ("gpu", "bfloat16", 4096, 8, None),
        ("gpu", "float32", 4096, 4, None),
        ("tpu", "bfloat16", 4096, 8, "have 25% of the dense map's weights, which on a TPU is slower"),
        ("tpu", "bfloat16", 4096, 32, None),
    ],
)
def test_too_many_weights_lose_to_the_dense_map_from_many_rows_on(monkeypatch, platform, dtype, rows, nblocks, dense):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    size = 64 // nblocks
    shapes = (nblocks, size, size), (nblocks, size, size)
    args = jax.ShapeDtypeStruct((rows, 64), dtype), *(jax.ShapeDtypeStruct(s, "float32") for s in shapes), None
    found = crossover.dense_is_faster(*args, input_parts=1, blocked=False)
    assert found is None if dense is None else dense in found


def test_what_loses_runs_dense_and_says_so(rng, monkeypatch, caplog):
    from vit_jax.kernels.monarch import IMPLEMENTATIONS

    table = dict(IMPLEMENTATIONS, xla=dispatch.Implementation(xla.run, slower_reason=lambda *a, **k: "of 3 rows"))
    monkeypatch.setattr("vit_jax.kernels.monarch.IMPLEMENTATIONS", table)
    args = [rng.standard_normal(s).astype("float32") for s in ((3, 8), (2, 6, 4), (3, 5, 4))]
    dispatch.say.cache_clear()
    with caplog.at_level(logging.WARNING):
        got = monarch(*args)
    np.testing.assert_array_equal(got, monarch(*args, implementation="dense"))
    assert caplog.messages == ["Monarch product runs as 'dense'; not 'xla': of 3 rows."]
