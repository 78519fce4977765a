"""The parameters of a map, in the order in which a product takes them."""

import inspect

from vit_jax.kernels.monarch import monarch
from vit_jax.kernels.monarch_mlp.factors import Factors


def test_a_product_takes_them_behind_its_input():
    assert tuple(inspect.signature(monarch).parameters)[1:4] == Factors._fields
