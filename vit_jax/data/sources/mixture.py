"""``mix:0.7*folder:/a+0.3*tar:/b``: several sources as one, in fixed proportions."""

from __future__ import annotations

import re

import numpy as np

from vit_jax.data.sources.base import Info, Record, Source, align, digest
from vit_jax.types import UserError


class Mixture:
    """Part k fills a share ``weights[k]`` of the examples; each part is seen whole, small or heavy ones repeatedly.

    One epoch is the shortest list with these proportions that holds every example at least once; repeats have an index
    of their own, hence their own augmentation. Classes are united by name, in the order of first appearance; with a
    part that has none, the mixture has none. It has captions if all parts do.
    """

    def __init__(self, parts: list[Source], weights: list[float], what: str):
        share = np.array(weights) / sum(weights)
        sizes = np.array([len(p) for p in parts])
        length = float(np.max(sizes / share))
        if length >= 2**32:
            raise UserError(
                f"the weights of {what!r} are too uneven: one epoch would repeat examples {length:.0e} times."
            )
        counts = np.maximum(np.rint(length * share).astype(np.int64), sizes)
        names = tuple(dict.fromkeys(name for p in parts for name in p.info.class_names))
        names = names if all(p.info.class_names for p in parts) else ()
        captions = [p.info.captions for p in parts]
        self.parts = [align(p, names, what) for p in parts]
        self.ends = np.cumsum(counts)
        notes = tuple(note for p in parts for note in p.info.notes)
        known = digest(*(p.info.digest for p in self.parts), self.ends)
        self.info = Info(names, int(self.ends[-1]), notes, max(captions) if all(captions) else 0, digest=known)

    def __len__(self) -> int:
        return self.info.num_examples

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self.ends, i, side="right"))
        inner = i - (int(self.ends[k - 1]) if k else 0)
        return self.parts[k][inner % len(self.parts[k])]


def open_mixture(rest: str, split: str, *, holdout: float | int, seed: int, templates: tuple[str, ...] = ()) -> Source:
    """Opens ``WEIGHT*SOURCE+WEIGHT*SOURCE…``; validation has the validation examples of every part once.

    ``templates`` caption the parts that have no captions of their own. A ``+`` starts a new part only before
    ``WEIGHT*``, so paths may contain it. Mixtures do not nest.
    """
    from vit_jax.data.sources import open_source  # the table holds this function too

    parts, weights = [], []
    for item in re.split(r"\+(?=[0-9.eE-]+\*)", rest):
        weight, star, path = item.partition("*")
        try:
            weights.append(float(weight))
        except ValueError:
            star = ""
        if not star or not path or path.startswith("mix:"):
            raise UserError(f"'mix:{rest}' cannot be read at {item!r}; write mix:0.7*folder:/a+0.3*tar:/b.")
        if not 0 < weights[-1] < float("inf"):
            raise UserError(f"the weight {weight} in 'mix:{rest}' is not positive.")
        parts.append(open_source(path, split, holdout=holdout, seed=seed, templates=templates))
    if split == "val":
        weights = [float(len(p)) for p in parts]
    return Mixture(parts, weights, f"mix:{rest}")
