"""What is pinned: inside the block alone, for what is compiled before as for what is compiled there."""

import jax
import pytest

from vit_jax.kernels import tiles, vmem
from vit_jax.types import UserError


@jax.jit
def taken(x):
    return x + vmem.even("monarch", (64, 32, 16), 1000, lambda rows: 0)


def test_a_pin_is_taken_where_it_is_and_compiled_programs_notice():
    assert taken(0) == 64
    with tiles.pinned(monarch=48, attention=2):
        assert taken(0) == 48 and tiles.of("attention") == 2
        with tiles.pinned(monarch=24):
            assert taken(0) == 24 and tiles.of("attention") == 2
        assert taken(0) == 48
    assert taken(0) == 64 and tiles.of("monarch") is None


def test_what_has_no_tiles_is_refused():
    with pytest.raises(UserError, match=r"unknown kernel with tiles 'monarch_map'.*monarch"):
        tiles.pinned(monarch_map=8).__enter__()
