"""The search for a batch against memory that is known."""

import pytest

from vit_jax.find import batch_size
from vit_jax.types import UserError


@pytest.mark.parametrize("sizes", [range(5, 6), range(3, 15), range(21)], ids=["one", "some", "many"])
@pytest.mark.parametrize("room", [2**9, 2**14, 2**40])
@pytest.mark.parametrize("power", [1.0, 0.8, 1.2])
def test_the_largest_batch_is_the_largest(sizes, room, power):
    """Against looking at every size, for memory that grows in a line with the batch, or not quite."""
    need = lambda size: 300 + int(size**power)  # noqa: E731
    timed = []

    def measured(size, time):
        timed.extend([size] if time else [])
        return batch_size.BatchSize(
            size, need(size), need(size) <= room, min(size, 100.0) if time and need(size) <= room else None
        )

    sizes = [2**i for i in sizes]
    rows = batch_size.search(measured, sizes, room)
    found = batch_size.BatchSearch(tuple(rows), room, "the memory", 10**6, False)
    fitting = [size for size in sizes if need(size) <= room]
    assert [row.size for row in rows] == sorted({row.size for row in rows})
    if not fitting:
        with pytest.raises(UserError, match=f"a batch of {sizes[0]} takes 0.00 GiB, and the memory is 0.00 GiB"):
            found.largest  # noqa: B018
        return
    assert found.largest.size == fitting[-1]
    assert found.rows[-1].size == sizes[min(len(fitting), len(sizes) - 1)]  # the next was looked at
    assert max(timed) <= max(512, sizes[0])  # two sizes that are no faster are enough
    assert found.enough.size == min(size for size in fitting if size == max(fitting) or size >= 100 / batch_size.GROWTH)
