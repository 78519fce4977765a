"""Topologies by name, and what is known of their chips."""

import os

import jax
import numpy as np
import pytest

from vit_jax.plan import topology
from vit_jax.types import UsageError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e:3x3", "there are 1x1, 2x2, 2x4, 4x4"),
        ("v5p:4x4", "2x2x1"),
        ("v4:2x2x1", "v5e, v5p, v6e"),
        ("cpu:none", "write cpu:8"),
        ("cpu:4096", "1 to 1,024"),
        ("cpu:512", "JAX_NUM_CPU_DEVICES=512"),
    ],
)
def test_a_topology_that_does_not_exist_is_answered_with_those_that_do(name, said):
    with pytest.raises(UsageError, match=said):
        topology.find(name)


def test_cpus_are_those_of_this_process():
    found = topology.find("cpu:4")
    assert found.chip is None and list(found.devices) == jax.devices()[:4] and found.hosts == 1
    assert found.memory > 2**20 and found.links(None, (0, 1)) == 1


def test_chips_do_what_their_clocks_and_units_give():
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in topology.CHIPS.items()}
    assert clocks == {"v5e": 1.5, "v5p": 1.75, "v6e": 1.75}
    v5e, v5p = topology.CHIPS["v5e"], topology.CHIPS["v5p"]
    assert v5e.links((16, 16)) == 4 and v5e.links((4, 4)) == 2 and v5e.links((16, 1)) == 2 and v5p.links((4, 4, 4)) == 6


class Device:
    def __init__(self, *coords):
        self.coords = coords


def test_a_group_exchanges_over_the_links_of_the_axes_it_lies_along():
    devices = [Device(x, y, 0) for x in range(16) for y in range(16)]
    found = topology.Topology("v5e:16x16", topology.CHIPS["v5e"], devices, 64)

    class Mesh:
        pass

    mesh = Mesh()
    mesh.devices = np.array(devices, object).reshape(16, 16, 1)
    assert found.links(mesh, ()) == 4
    assert found.links(mesh, tuple(range(16))) == 2  # a whole axis: a ring
    assert found.links(mesh, tuple(range(8))) == 1  # half of it: a line
    assert found.links(mesh, tuple(range(0, 256, 16))) == 2


def test_what_libraries_print_is_kept_off_the_terminal(capfd):
    with topology.quiet():
        os.write(2, b"noise of a library\n")
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:4x4", "v5p:2x2x1", "v6e:2x2"])
def test_topologies_are_opened(name, tpu_chips):
    found = topology.find(name)
    assert len(found.devices) == np.prod([int(n) for n in name.partition(":")[2].split("x")])
    assert found.hosts == max(1, len(found.devices) // 4) and found.memory == found.chip.hbm
