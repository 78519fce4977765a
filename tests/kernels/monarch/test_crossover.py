"""The place for measurements of when the dense product wins."""

import logging

import numpy as np

from vit_jax.kernels import dispatch
from vit_jax.kernels.monarch import crossover, monarch, xla


def test_nothing_loses_yet():
    args = np.zeros((3, 8)), np.zeros((2, 6, 4)), np.zeros((3, 5, 4)), None
    assert crossover.loses(*args, input_parts=1, blocked=False) is None


def test_what_loses_runs_dense_and_says_so(rng, monkeypatch, caplog):
    from vit_jax.kernels.monarch import IMPLEMENTATIONS

    table = dict(IMPLEMENTATIONS, xla=dispatch.Implementation(xla.run, unwise=lambda *a, **k: "of 3 rows"))
    monkeypatch.setattr("vit_jax.kernels.monarch.IMPLEMENTATIONS", table)
    args = [rng.standard_normal(s).astype("float32") for s in ((3, 8), (2, 6, 4), (3, 5, 4))]
    dispatch.say.cache_clear()
    with caplog.at_level(logging.WARNING):
        got = monarch(*args)
    np.testing.assert_array_equal(got, monarch(*args, implementation="dense"))
    assert caplog.messages == ["Monarch product runs as 'dense'; not 'xla': of 3 rows."]
