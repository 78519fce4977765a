"""When the dense product wins, and that it then runs."""

import logging

import jax
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.monarch import crossover, monarch, xla


@pytest.mark.parametrize(("rows", "nblocks", "runs"), [(1024, 2, "dense"), (1023, 2, "xla"), (4096, 4, "xla")])
def test_as_many_weights_as_the_dense_map_lose_from_many_rows_on(rows, nblocks, runs):
    size = 64 // nblocks
    shapes = (rows, 64), (nblocks, size, size), (nblocks, size, size)
    args = *(jax.ShapeDtypeStruct(s, "float32") for s in shapes), None
    found = crossover.dense_is_faster(*args, input_parts=1, blocked=False)
    assert (found is None) == (runs == "xla")
    assert runs == "xla" or "have 100% of the dense map's weights" in found


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
