"""The int8 case of the kernel bench."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.int8.case import Int8


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_rounding_its_rows_changes_nothing(activations):
    case = Int8(activations)(5, 32, 64, jnp.float32)
    got = jax.jit(lambda *args: case.run("xla", *args))(case.x, *case.parameters)
    np.testing.assert_allclose(got, case.value(), atol=1e-5)
    assert case.here()[-1] == "xla" and (case.flops, case.bytes) == (2 * 5 * 32 * 64, 4 * 5 * 96 + 32 * 64 + 4 * 64)
