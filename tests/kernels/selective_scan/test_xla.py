"""The form for every platform beyond the contract suite: other cuts, the same result."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.selective_scan import xla


@pytest.mark.parametrize(("tokens", "chunks", "size"), [(1, 1, 1), (40, 2, 32), (64, 2, 32), (0, 0, 1)])
def test_rows_are_cut_into_chunks_and_put_together(rng, tokens, chunks, size):
    x = jnp.asarray(rng.standard_normal((2, tokens, 3)), jnp.bfloat16)
    cut = xla.apart(x)
    assert cut.shape == (chunks, size, 2, 3) and cut.dtype == jnp.float32
    np.testing.assert_array_equal(xla.together(cut, x), x)
    assert not np.any(np.moveaxis(cut, 2, 0).reshape(2, -1, 3)[:, tokens:])
