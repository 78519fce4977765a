"""When gathering pays, and that no other row is read."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.kernels.topk_mlp import gather


def shapes(rows):
    return jax.ShapeDtypeStruct((rows, 1, 3072), "float32"), jax.ShapeDtypeStruct((3072, 768), "float32"), None


def test_few_rows_of_few_units():
    assert gather.slower_reason(*shapes(8), k=128) is None
    reason = gather.slower_reason(*shapes(9), k=128)
    assert reason == "128 rows of the kernel for each of 9 tokens are more than a third of its 3072"


def test_not_where_the_kernel_is_divided_by_its_rows():
    for tensor, reason in ((1, None), (2, "the hidden units are divided among 2 devices")):
        with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(-1, 1, tensor))):
            assert gather.slower_reason(*shapes(1), k=1) == reason


def test_rows_of_other_units_are_not_read(rng):
    kernel = np.full((9, 4), np.nan, np.float32)
    kernel[[2, 5]] = rng.standard_normal((2, 4))
    h = np.zeros((2, 9), np.float32)
    h[:, 2], h[:, 5] = (1, 2), (3, -1)
    np.testing.assert_allclose(gather.run(jnp.asarray(h), kernel, None, k=2), h[:, [2, 5]] @ kernel[[2, 5]], rtol=1e-6)


def test_what_is_not_a_number_is_taken_along(rng):
    h = np.zeros((1, 9), np.float32)
    h[0, 3], h[0, 4] = 1, np.nan
    assert np.isnan(gather.run(jnp.asarray(h), jnp.ones((9, 4)), None, k=2)).all()
