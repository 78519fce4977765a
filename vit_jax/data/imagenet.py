"""The 1,000 classes of ImageNet-1k in the order of ILSVRC2012, which is that of their WordNet numbers.

``imagenet.csv`` has WordNet's own names; of two that are the same, both cranes, it says which is which.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence

from vit_jax.io import text

CLASSES = 1000


@functools.cache
def classes() -> Mapping[str, str]:
    """WordNet number -> name: ``{"n01440764": "tench, Tinca tinca", ...}``."""
    data = importlib.resources.files(__package__).joinpath("imagenet.csv").read_bytes()
    return {row["synset"]: row["name"] for row in csv.DictReader(text.lines(text.decode(data)))}


def named(class_names: Sequence[str]) -> tuple[str, ...]:
    """WordNet numbers of ImageNet's classes, all or some of them, as their names; any other names as they are."""
    if not class_names or not re.fullmatch(r"n\d{8}", class_names[0]) or not set(class_names) <= classes().keys():
        return tuple(class_names)
    return tuple(classes()[name] for name in class_names)


def is_told(tag: str) -> bool:
    """Whether a tag of published weights, ``"augreg_in21k_ft_in1k_384"``, ends its training with ImageNet-1k."""
    found = re.findall(r"(?<![a-zA-Z\d])in\d+k(?![a-zA-Z\d])", tag)
    return bool(found) and found[-1] == "in1k"
