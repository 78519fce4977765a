"""Slices of TPUs as clouds name them: types, runtimes, labels of nodes, hosts.

Sources: Cloud TPU documentation (configurations and software versions of v4, v5e, v5p, v6e), GKE's "Plan TPUs", and
the table of xpk (``system_characteristics.py``), which takes nodes of four chips.
"""

from __future__ import annotations

import dataclasses
import math

from vit_jax.config import suggest
from vit_jax.plan.topology import CUBIC, FLAT
from vit_jax.types import UsageError

NODE = 4
"""Chips of a host where a slice has several."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of TPU.

    Attributes:
      name: ``"v5e"``.
      prefix: of its accelerator types: ``"v5litepod"``.
      cores: what the number of an accelerator type counts in a chip.
      single: most chips that one host may have, alone.
      runtime: software of a TPU VM.
      label: what nodes of GKE have as ``cloud.google.com/gke-tpu-accelerator``.
      shapes: topologies, smallest first.
    """

    name: str
    prefix: str
    cores: int
    single: int
    runtime: str
    label: str
    shapes: tuple[str, ...]


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", "v4", 2, 4, "tpu-ubuntu2204-base", "tpu-v4-podslice", CUBIC),
        Generation("v5e", "v5litepod", 1, 8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", FLAT),
        Generation("v5p", "v5p", 2, 4, "v2-alpha-tpuv5", "tpu-v5p-slice", CUBIC),
        Generation("v6e", "v6e", 1, 8, "v2-alpha-tpuv6e", "tpu-v6e-slice", FLAT),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are rented together.

    Attributes:
      generation: of which kind.
      shape: ``"16x16"``.
    """

    generation: Generation
    shape: str

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def type(self) -> str:
        """Its accelerator type: ``"v5litepod-256"``."""
        return f"{self.generation.prefix}-{self.chips * self.generation.cores}"

    @property
    def hosts(self) -> int:
        """TPU VMs, each of which runs one process."""
        return 1 if self.chips <= self.generation.single else self.chips // NODE

    @property
    def node(self) -> int:
        """Chips of a node of GKE."""
        return min(self.chips, NODE)

    @property
    def nodes(self) -> int:
        """Nodes of GKE, each of which runs one process."""
        return self.chips // self.node


def find(text: str) -> Slice:
    """The slice of an accelerator type, ``"v5litepod-256"``, or of a topology as ``plan`` takes it, ``"v5e:16x16"``.

    Of several shapes with as many chips a type means the first.

    Raises:
      UsageError: there is no such slice.
    """
    slices = [Slice(generation, shape) for generation in GENERATIONS.values() for shape in generation.shapes]
    named = {f"{one.generation.name}:{one.shape}": one for one in slices}
    types = {one.type: one for one in reversed(slices)}
    if found := named.get(text) or types.get(text):
        return found
    kind = text.partition(":")[0] if ":" in text else text.rpartition("-")[0]
    there = [name for name, one in {**types, **named}.items() if kind in (one.generation.name, one.generation.prefix)]
    some = ", ".join(sorted(there, key=lambda name: ({**types, **named}[name].chips, name)))
    raise UsageError(
        f"{text[:60]!r} is no slice of TPUs{suggest(text, [*types, *named])} "
        + (f"Of {kind} there are {some}." if there else f"The kinds are {', '.join(GENERATIONS)}: write v5e:16x16.")
    )
