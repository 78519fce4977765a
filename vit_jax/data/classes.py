"""Names of classes, of a model and of data."""

from __future__ import annotations

from collections.abc import Sequence

from vit_jax.data import imagenet
from vit_jax.io.text import normal


def spelled(names: Sequence[str]) -> tuple[str, ...]:
    """Names in the form in which they are compared: ImageNet's WordNet numbers are the classes that they stand for."""
    return imagenet.named(tuple(map(normal, names)))


def mismatch(of_model: Sequence[str], of_data: Sequence[str]) -> str | None:
    """How the classes differ, as the middle of a sentence; None if they do not, or if the model knows numbers only."""
    model, data = spelled(of_model), spelled(of_data)
    if model in (data, tuple(map(str, range(len(data))))):
        return None
    new = [a for a, b in zip(model, data, strict=False) if a != b]
    first = f" (first difference: {new[0]})" if new else ""
    return f"has the classes {_some(model)}, the data {_some(data)}{first}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ... ({len(names)})"
