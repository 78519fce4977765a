"""PyTorch's own files (``.pth``, ``.pt``, ``.bin``): pickles, of which nothing but the tensors is ever built."""

from __future__ import annotations

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.types import UserError

log = logging.getLogger(__name__)

PARTS = (
    "state_dict", "model", "model_state", "model_state_dict", "module", "net", "teacher",
    "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
"""Where training programs put the weights; of several parts the first in this order is taken, and a warning says so."""

PREFIXES = ("module.", "_orig_mod.")
"""What data parallelism and compilation put before every name."""

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Of the same name in PyTorch and NumPy; bfloat16 comes besides."""


def load_state(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a state dictionary, their data still in the mapped file.

    Args:
      path: a file written by ``torch.save``. In one with several parts the first of :data:`PARTS` is taken; a prefix
        of :data:`PREFIXES` that all names share is cut off.

    Returns:
      Name -> dense ``torch.Tensor``.

    Raises:
      UserError: PyTorch is missing, the file is damaged, or it is no state dictionary or more than tensors.
    """
    part = _part(_load(path), path)
    state, others = {}, []
    for name, value in part.items():
        if not isinstance(name, str):
            raise UserError(f"{path} is no state dictionary: its key {name!r} is of type {type(name).__name__}.")
        if _is_tensor(value):
            _check(value, name, path)
            state[name] = value.detach()
        else:
            others.append(name)
    if others:
        log.warning("%s: left out what is no tensor: %s.", path, _few(others))
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def to_numpy(tensor: Any) -> np.ndarray:
    """A view of the tensor's memory, without a copy; bfloat16 as ``ml_dtypes.bfloat16``."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def numpy_dtype(tensor: Any) -> np.dtype:
    """The dtype of :func:`to_numpy`'s result."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _load(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"reading {path} takes PyTorch, which is not installed: pip install 'vit_jax[torch]'."
        ) from None
    with open(path, "rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"  # the format before PyTorch 1.6 cannot be mapped
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:  # PyTorch raises OSError, KeyError, RuntimeError ... for damaged files
        problem = str(e).strip() or type(e).__name__
    if "TorchScript" in problem:
        raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict() as safetensors.")
    if found := re.search(r"GLOBAL ([\w.]+)", problem):
        raise UserError(
            f"{path} holds more than tensors ({found[1]}); it was not opened, because unpickling runs code; where you "
            "trust it, load it in PyTorch and save its weights as safetensors."
        )
    reason = (
        "its pickle is no state dictionary" if re.search("eights.only", problem) else problem.partition("\n")[0][:120]
    )
    raise UserError(f"{path} cannot be read as a PyTorch file ({reason}); it is damaged or cut short: get it again.")


def _part(tree: Any, path: pathlib.Path) -> Mapping[Any, Any]:
    """The part of a loaded file that holds the weights."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a state dictionary (names and tensors).")
    if _has_tensors(tree):
        return tree
    there = [key for key, value in tree.items() if isinstance(value, Mapping) and _has_tensors(value)]
    known = [key for key in PARTS if key in there] or there
    if not known:
        raise UserError(f"{path} holds no weights: no tensor under its {_few(tree) or '0'} entries.")
    if known is there and len(there) > 1:
        raise UserError(f"{path} holds several parts ({_few(there)}), none of a usual name; save the one you mean.")
    if len(there) > 1:
        log.warning("%s: took the weights under %r; there are others under %s.", path, known[0], _few(there))
    return tree[known[0]]


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _has_tensors(tree: Mapping) -> bool:
    return any(_is_tensor(value) for value in tree.values())


def _check(tensor: Any, name: str, path: pathlib.Path) -> None:
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or kind not in (*DTYPES, "bfloat16"):
        raise UserError(
            f"{name} in {path} is {kind} and {tensor.layout} on {tensor.device}; only dense numbers can be read."
        )
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{name} in {path} claims {tensor.nbytes:,} bytes, more than are stored (a bomb?).")


def _few(names: Any) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
