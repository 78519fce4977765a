"""Slices by both of their names."""

import pytest

from vit_jax.launch import topologies
from vit_jax.types import UsageError


@pytest.mark.parametrize(
    ("names", "chips", "hosts", "nodes"),
    [
        (("v5litepod-256", "v5e:16x16"), 256, 64, 64),
        (("v5litepod-8", "v5e:2x4"), 8, 1, 2),
        (("v5litepod-1", "v5e:1x1"), 1, 1, 1),
        (("v6e-16", "v6e:4x4"), 16, 4, 4),
        (("v5p-8", "v5p:2x2x1"), 4, 1, 1),
        (("v5p-128", "v5p:4x4x4"), 64, 16, 16),
        (("v4-16", "v4:2x2x2"), 8, 2, 2),
    ],
)
def test_a_type_and_its_topology_are_one_slice(names, chips, hosts, nodes):
    by_type, by_shape = map(topologies.find, names)
    assert by_type == by_shape and by_type.type == names[0]
    assert (by_type.chips, by_type.hosts, by_type.nodes) == (chips, hosts, nodes)


def test_every_slice_is_found_by_its_type():
    for generation in topologies.GENERATIONS.values():
        for shape in generation.shapes:
            one = topologies.Slice(generation, shape)
            assert topologies.find(one.type).chips == one.chips and one.chips == one.nodes * one.node


def test_what_is_no_slice():
    with pytest.raises(UsageError, match=r"did you mean .*'v5e:4x4'.* Of v5e there are v5e:1x1, v5litepod-1, v5e:2x2"):
        topologies.find("v5e:4x5")
    with pytest.raises(UsageError, match=r"Of v5litepod there are .*v5litepod-256\.$"):
        topologies.find("v5litepod-257")
    with pytest.raises(UsageError, match=r"The kinds are v4, v5e, v5p, v6e: write v5e:16x16\.$"):
        topologies.find("H100:8")
