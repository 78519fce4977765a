"""Parameters of one model fitted to another: new head, other positions, other size of patches."""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax import config
from vit_jax.config import suggest
from vit_jax.layers.embed import RESIZES, resize_patches, resize_positions
from vit_jax.trees import flat, nested
from vit_jax.types import Params, UserError

PATCHES = {name: "bicubic" if name.startswith("bicubic") else "bilinear" for name in RESIZES} | {
    "bilinear_corners": "bilinear_plain"
}
"""How positions are resized -> how patches are: as an image is, edge to edge; antialiased but in big_vision."""
NORMS = ("encoder/norm/", "norm_pool/")
"""The norm after the blocks and the one after pooling, of which models that average have the one or the other."""


def adapt(
    loaded: Mapping[str, Any],
    fresh: Params,
    *,
    name: str,
    new: Collection[str] = (),
    new_head: bool = False,
    resize: str = "bilinear",
) -> tuple[Params, list[str]]:
    """Fits ``loaded`` parameters to a model with another head, grid of positions or size of patches.

    Args:
      loaded: nested dictionary of arrays.
      fresh: the model's own parameters.
      name: name of the source, for errors.
      new: paths of parameters, of either model, that the other may lack or have in another shape: heads and adapters
        (see :attr:`vit_jax.models.Role.new`). They are taken from ``fresh`` there.
      new_head: leave all of those out even where shapes fit, because the classes are others.
      resize: how positions and patches are resized, a name in :data:`vit_jax.layers.embed.RESIZES`.

    Returns:
      Parameters in the structure and types of ``fresh``, and one human-readable note per change.

    Raises:
      UserError: anything else is missing, left over or of another shape; ``resize`` is unknown.
    """
    config.lookup(RESIZES, resize, "resize method")
    want = flat(fresh)
    have, notes = _moved(flat(loaded), want)
    out, wrong, casts = {}, [], collections.Counter[str]()
    for path, leaf in want.items():
        value = have.pop(path, None)
        may_be_new = path in new
        if value is None or (may_be_new and (new_head or value.shape != leaf.shape)):
            if may_be_new:
                out[path] = leaf
                notes.append(f"{path} is new ({_was(value, leaf)})")
            else:
                wrong.append(f"{path} is missing{suggest(path, have).rstrip('.')}")
            continue
        if value.dtype != leaf.dtype:
            casts[f"from {value.dtype} to {leaf.dtype}"] += 1
        out[path] = np.asarray(value).astype(leaf.dtype, copy=False)
        if value.shape != leaf.shape:
            fitted = _fit(path, out[path], leaf.shape, resize)
            if fitted is None:
                wrong.append(f"{path} has the shape {value.shape}, not {leaf.shape}")
            else:
                out[path], note = fitted
                notes.append(note)
    unused = [p for p in have if p in new or p in ("cls", "dist")]
    notes += [f"{path} is not used" for path in unused]
    wrong += [f"{path} is left over" for path in have if path not in unused]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{name} does not fit the model: {'; '.join(wrong[:3])}{more}.")
    notes += [f"parameters are converted {how} ({n} of {len(out)})" for how, n in sorted(casts.items())]
    return nested(out), notes


def _moved(have: dict[str, Any], want: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """``have`` with the norm where ``want`` has it, after the blocks or after their average, and a note."""
    for old, new in (NORMS, NORMS[::-1]):
        there, here = ({norm for norm in NORMS if any(p.startswith(norm) for p in side)} for side in (have, want))
        if (there, here) == ({old}, {new}):
            renamed = {p.replace(old, new, 1) if p.startswith(old) else p: x for p, x in have.items()}
            return renamed, [f"{new}* are what {old}* are there"]
    return have, []


def _was(value: Any, leaf: Any) -> str:
    if value is None:
        return "absent there"
    return "of other classes there" if value.shape == leaf.shape else f"{'x'.join(map(str, value.shape))} there"


def _fit(path: str, value: np.ndarray, shape: tuple[int, ...], method: str) -> tuple[np.ndarray, str] | None:
    """``value`` in another ``shape`` and what was done; None where nothing is known to be right."""
    parts = path.split("/")
    if value.ndim != len(shape):
        return None
    if "position" in parts and "text_tower" in parts:
        raise UserError(
            f"{path} is for texts of {value.shape[1]} tokens there and {shape[1]} here (a cls counts as one), and "
            "positions of texts are not resized; set data.text.length to that of the weights."
        )
    if "position" in parts and value.shape[2:] == shape[2:]:
        return _positions(path, value, shape[1], method)
    if parts[-2:] == ["patch", "kernel"] and value.shape[2:] == shape[2:]:
        old, new = ("x".join(map(str, s[:2])) for s in (value.shape, shape))
        return resize_patches(
            value, shape[0], PATCHES[method]
        ), f"{path} is resized from {old} to {new} (pseudo-inverse)"
    if parts[-3:] == ["tokens", "mlp_in", "kernel"] and value.shape[0] != shape[0]:
        raise UserError(
            f"{path} mixes {value.shape[0]} tokens there and {shape[0]} here, and weights across tokens cannot be "
            f"resized; choose an image size of {value.shape[0] ** 0.5:g} times the patch size."
        )
    return None


def _positions(path: str, value: np.ndarray, count: int, method: str) -> tuple[np.ndarray, str]:
    """Position embeddings resized to another grid; models here have a square grid and at most two prefix tokens."""
    sides = []
    for n in (value.shape[1], count):
        prefix = next((p for p in range(3) if round((n - p) ** 0.5) ** 2 == n - p), None)
        if prefix is None:
            raise UserError(f"{path}: {n} positions are no square grid, so they cannot be resized.")
        sides.append((prefix, round((n - prefix) ** 0.5)))
    (old_prefix, old), (new_prefix, new) = sides
    if old_prefix < new_prefix:
        raise UserError(
            f"{path}: the grid has {old_prefix} prefix tokens there and {new_prefix} here; use the same pool."
        )
    lost = ("cls", "dist")[new_prefix:old_prefix]
    done = [f"loses that of {' and '.join(lost)}"] if lost else []
    done += [f"is resized from {old}x{old} to {new}x{new}"] if old != new else []
    kept = np.concatenate([value[:, :new_prefix], value[:, old_prefix:]], axis=1)
    return resize_positions(kept, (old, old), (new, new), new_prefix, method), f"{path} {' and '.join(done)}"
