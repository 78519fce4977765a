"""``mix:0.7*folder:/a+0.3*tar:/b``: several sources as one, in fixed proportions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.sources.base import Info, Record, Source, align, digest
from vit_jax.io import text as texts
from vit_jax.types import UserError

QUOTED = re.compile(r"""(?<=\*)(["'])(.*?)\1(?=\+|\Z)""")
"""A part in quotes."""


class Mixture:
    """Part k fills a share ``weights[k]`` of the examples; each part is seen whole, small or heavy ones repeatedly.

    One epoch is the shortest list with these proportions that holds every example at least once; repeats have an index
    of their own, hence their own augmentation. Classes are united by name, in the order of first appearance; with a
    part that has none, the mixture has none. It has captions if all parts do. Notes say so.

    Attributes:
      silent: names of the parts without captions.
    """

    def __init__(self, parts: list[Source], weights: list[float], what: str, named: Sequence[str] = ()):
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
        named = named or [f"part {i + 1}" for i in range(len(parts))]
        self.silent = tuple(name for name, p in zip(named, parts, strict=True) if not p.info.captions)
        notes = (*(note for p in parts for note in p.info.notes), *_differences(parts, named, counts.tolist()))
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


def _differences(parts: list[Source], named: Sequence[str], counts: list[int]) -> Iterator[str]:
    """What is to be known of parts that are seen unequally often, or that differ in classes or captions."""
    times = [count / len(part) for count, part in zip(counts, parts, strict=True)]
    if len(set(times)) > 1:
        of = (f"{len(p):,} of {name} {n:.3g} times" for p, name, n in zip(parts, named, times, strict=True))
        yield f"an epoch sees the {', the '.join(of)}"
    for what, has in {
        "classes": [p.info.num_classes for p in parts],
        "captions": [p.info.captions for p in parts],
    }.items():
        without = [name for name, some in zip(named, has, strict=True) if not some]
        if 0 < len(without) < len(parts):
            yield f"{' and '.join(without)} {'has' if len(without) == 1 else 'have'} no {what}, so the mixture has none"
    sets = [{texts.normal(name) for name in p.info.class_names} for p in parts]
    for name, p, own in zip(named, parts, sets, strict=True) if all(sets) else ():
        alone = [c for c in p.info.class_names if sum(texts.normal(c) in other for other in sets) == 1]
        if alone:
            which = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            yield f"{len(alone)} of the {len(own)} classes of {name} are in no other part ({which})"


def open_mixture(rest: str, split: str, *, holdout: float | int, seed: int, templates: tuple[str, ...] = ()) -> Source:
    """Opens ``WEIGHT*SOURCE+WEIGHT*SOURCE…``; validation has the validation examples of every part once.

    ``templates`` caption the parts that have no captions of their own. A ``+`` starts a new part only before
    ``WEIGHT*``, so paths may contain it; one in quotes, ``0.5*"csv:/a+2*b.csv"``, may contain that too. Mixtures do not
    nest.
    """
    from vit_jax.data.sources import open_source  # the table holds this function too

    quoted = [found[2] for found in QUOTED.finditer(rest)]
    places = iter(range(len(quoted)))
    plain = QUOTED.sub(lambda _: f"\0{next(places)}", rest)
    parts, weights, named = [], [], []
    for item in re.split(r"\+(?=[0-9.eE-]+\*)", plain):
        weight, star, path = item.partition("*")
        if path.startswith("\0"):
            path = quoted[int(path[1:])]
        try:
            weights.append(float(weight))
        except ValueError:
            star = ""
        if not star or not path or path.startswith("mix:"):
            raise UserError(f"'mix:{rest}' cannot be read at {item!r}; write mix:0.7*csv:/a.csv+0.3*folder:/b.")
        if not 0 < weights[-1] < float("inf"):
            raise UserError(f"the weight {weight} in 'mix:{rest}' is not positive.")
        parts.append(open_source(path, split, holdout=holdout, seed=seed, templates=templates))
        named.append(path)
    if split == "val":
        weights = [float(len(p)) for p in parts]
    return Mixture(parts, weights, f"mix:{rest}", named)
