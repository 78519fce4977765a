"""Which tensors of a file are the weights: those under the one prefix of names below which a known format lies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from vit_jax.io.tensors import Tensors
from vit_jax.types import UserError

ORDER = (
    "state_dict", "model", "model_state", "model_state_dict", "module", "net", "teacher", "base_encoder", "encoder_q",
    "online_encoder", "online_network", "backbone", "encoder", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
"""Where training programs put weights; of several models in a file the one that this names first is taken."""
WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""What PyTorch puts between the names of modules that are compiled, computed anew or split."""
MAX_DEPTH = 8
"""Of the names that may precede those of a format."""


def locate(
    theirs: Tensors, matches: Callable[[Collection[str]], bool], source: str
) -> tuple[Tensors, list[str]] | None:
    """The tensors of a known format, wherever they lie.

    Training programs wrap them: in dictionaries (``state_dict``), in modules (``module.``, ``model.backbone.``), beside
    optimizers, heads and other models. Of prefixes inside of each other the shortest counts.

    Args:
      theirs: all tensors of a file.
      matches: whether tensors of these names are of a known format.
      source: what is read, for errors.

    Returns:
      Those under the prefix, named without it, and one human-readable note per thing that was decided; None where
      nothing matches.

    Raises:
      UserError: several models are there, none under a usual name.
    """
    theirs, wrapped = _unwrapped(theirs)
    found = _prefixes(theirs, matches)
    if not found:
        return None
    prefix = _preferred(found, source)
    if not prefix:
        return theirs, wrapped
    own = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    notes = [f"its weights are those under {prefix!r}", *wrapped]
    if others := [p for p in found if p != prefix]:
        notes[0] += f" (there are others under {_few(others)})"
    if rest := [name for name in theirs if not name.startswith(prefix)]:
        many = f"{len(rest)} other tensors are" if rest[1:] else "another tensor is"
        notes.append(f"{many} left out ({', '.join(rest[:2])}{', ...' if rest[2:] else ''})")
    return own, notes


def _unwrapped(theirs: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors without :data:`WRAPPERS` inside of their names, and what is said of it."""
    parts = dict.fromkeys(part for name in theirs for part in WRAPPERS.findall(name))
    inner = {WRAPPERS.sub("", name): tensor for name, tensor in theirs.items()} if parts else theirs
    if not parts or len(inner) < len(theirs):
        return theirs, []
    return inner, [f"its modules are wrapped ({', '.join(parts)})"]


def _prefixes(theirs: Tensors, matches: Callable[[Collection[str]], bool]) -> list[str]:
    """All shortest prefixes under which a format lies, those with fewer parts first."""
    found, level = [], {"": list(theirs)}
    for _ in range(MAX_DEPTH):
        below: dict[str, list[str]] = defaultdict(list)
        for prefix, names in level.items():
            if matches(dict.fromkeys(names).keys()):
                found.append(prefix)
                continue
            for name in names:
                if part := re.match(r"[^./]*[./]", name):
                    below[prefix + part[0]].append(name[part.end() :])
        level = below
    return found


def _preferred(found: Sequence[str], source: str) -> str:
    """Of several prefixes the one that :data:`ORDER` names first, where they part."""
    there = {prefix: re.split("[./]", prefix) for prefix in found}
    for depth in range(MAX_DEPTH):
        parts = {parts[depth] for parts in there.values()}
        if len(there) == 1:
            break
        if len(parts) > 1:
            usual = next((name for name in ORDER if name in parts), None)
            if usual is None:
                raise UserError(f"{source} holds several models, under {_few(found)}; save the one you mean by itself.")
            there = {prefix: parts for prefix, parts in there.items() if parts[depth] == usual}
    return next(iter(there))


def _few(prefixes: Sequence[str]) -> str:
    return ", ".join(map(repr, prefixes[:4])) + (f" and {len(prefixes) - 4} more" if prefixes[4:] else "")
