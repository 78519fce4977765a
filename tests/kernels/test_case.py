"""Which implementations of a case run on this machine."""

import jax
import jax.numpy as jnp

from vit_jax.kernels.case import Case
from vit_jax.kernels.dispatch import Implementation


def test_only_implementations_of_this_platform_are_here():
    table = {name: Implementation(lambda x: x, platform=name) for name in ("cpu", "tpu", "gpu")}
    table["anywhere"] = Implementation(lambda x: x)
    x = jnp.ones((2, 3))
    case = Case(run=lambda name, x: x, x=x, parameters=(), weight=jnp.eye(3), implementations=table, flops=0, bytes=0)
    assert case.here() == [jax.default_backend(), "anywhere"]
