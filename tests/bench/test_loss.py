"""A loss is compared with its dense form."""

import pytest

from vit_jax.bench.loss import compare


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_time_and_memory(name):
    found = compare(name, 300, 8, chunk=16, rounds=2)
    assert found["loss"] == f"{name}, 300 pairs of width 8, chunks of 16"
    low, median, high = (
        found[f"chunked takes times as long ({k})"] for k in ("10th percentile", "median", "90th percentile")
    )
    assert 0 < low <= median <= high
    assert found["times less memory"] == found["dense temporary MB"] / found["chunked temporary MB"] > 3
