"""``Shapes:2000`` or ``Shapes(2000, first=10)``: sources that a class of one's own makes."""

from __future__ import annotations

import re

from vit_jax.checks import shown
from vit_jax.config import own
from vit_jax.config.choices import call
from vit_jax.config.overrides import literal
from vit_jax.data.sources.base import Source
from vit_jax.types import UsageError


def kinds() -> dict[str, type]:
    """Known classes that may be sources, by name: those with a length and examples."""
    return own.suiting(_is_source)


def open_own(path: str, taken: bool) -> Source | None:
    """The object that ``path`` makes of a known class; None where its kind is that of none.

    What follows a colon is the one argument, a literal or else a text.

    Args:
      path: ``"Shapes:2000"``, ``"Shapes(2000, first=10)"`` or ``"Shapes"``.
      taken: whether there is a source of that kind already.

    Raises:
      UsageError: two classes have the name, or it is taken; the class fails, or makes no source.
    """
    kind = (re.match(r"\w*", path) or [""])[0]
    fit = {cls: place for cls, place in own.called(kind).items() if _is_source(cls)}
    if not fit:
        return None
    if taken or len(fit) > 1:
        places = " and ".join(place.place for place in fit.values())
        kept = ", and a kind of sources without it" if taken else ""
        raise UsageError(f"the source {shown(path)}: {kind!r} is a class of {places}{kept}; rename the class.")
    (cls,), colon = fit, path[len(kind) :]
    _, args, keywords = call(path, "the source") or (kind, [], []) if not colon.startswith(":") else (kind, [], [])
    args = [literal(colon[1:])] if len(colon) > 1 and colon[0] == ":" else args
    with own.running(cls):
        source = cls(*args, **dict(keywords))
    if not isinstance(source, Source):
        raise UsageError(f"the source {shown(path)}: {kind} has no attribute 'info' that tells of its examples.")
    return source


def _is_source(cls: type) -> bool:
    return hasattr(cls, "__getitem__") and hasattr(cls, "__len__")
