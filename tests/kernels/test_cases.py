"""The cases of the kernel bench: their dense weight is that of the product, their floor is counted."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.cases import CASES


@pytest.mark.parametrize("op", CASES)
def test_a_case_is_its_dense_product(op):
    case = CASES[op]()(5, 32, 64, jnp.float32)
    for name in case.here():
        got = case.run(name, case.x, *case.parameters)
        np.testing.assert_allclose(got, np.asarray(case.x) @ np.asarray(case.weight), atol=1e-5)
    assert "mosaic_tpu" not in case.here()
    assert case.bytes == 4 * 5 * (32 + 64) + sum(p.nbytes for p in case.parameters)
    assert case.flops == 2 * 5 * (32 * 64 if op == "sparse24" else sum(p.size for p in case.parameters))
