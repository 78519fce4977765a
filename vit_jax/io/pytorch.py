"""PyTorch's own files (``.pth``, ``.bin``, ``.ckpt`` ...): pickles, of which nothing but the tensors is ever built."""

from __future__ import annotations

import collections
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.io.extras import needed
from vit_jax.io.npz import Leaf
from vit_jax.types import UserError

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Of the same name in PyTorch and NumPy; bfloat16 comes besides."""


NO_ARRAY = np.dtype("V1")
"""The dtype of what is no dense array of numbers; reading it raises UserError."""
BESIDE = (
    "argparse.Namespace", "types.SimpleNamespace",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    *(f"pathlib.{module}{kind}Path" for module in ("", "_local.") for kind in ("Posix", "Windows")),
)  # fmt: skip
"""Settings and figures that training programs leave beside the weights. None is built: see :class:`_Beside`."""
MAX_DEPTH = 16
"""Of dictionaries within dictionaries."""


class _Beside:
    """Takes the place of what is no tensor: made from anything, it keeps nothing and does nothing."""

    def __new__(cls, *args: Any) -> _Beside:
        del args
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def open_pytorch(path: pathlib.Path) -> Iterator[Leaf]:
    """The tensors of a file written by ``torch.save``, wherever they lie in it; their data stay in the mapped file.

    Args:
      path: a dictionary of tensors, or of such dictionaries and of whatever else training programs keep.

    Returns:
      Leaves, named by the keys that lead to them, joined by dots: ``"state_dict.module.head.bias"``. What is no dense
      array of numbers is of the type :data:`NO_ARRAY`.

    Raises:
      UserError: PyTorch is missing, the file is damaged, holds no tensors or what would have to be unpickled.
    """
    tree = _load(path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a state dictionary (names and tensors).")
    names: set[str] = set()
    for name, tensor in _tensors(tree, path):
        if name in names:
            raise UserError(f"{path} holds two tensors called {name!r}; save the weights alone, as safetensors.")
        names.add(name)
        problem = _problem(tensor)
        if problem is None:
            yield name, tuple(tensor.shape), numpy_dtype(tensor), functools.partial(to_numpy, tensor)
        else:
            yield name, tuple(tensor.shape), NO_ARRAY, functools.partial(_refuse, f"{name} in {path} {problem}")
    if not names:
        raise UserError(f"{path} holds no weights: no tensor under its {_few(tree) or '0'} entries.")


def _tensors(tree: Mapping[Any, Any], path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """All tensors of nested dictionaries, the outer ones first; a dictionary that is there twice counts once."""
    import torch

    seen, queue = {id(tree)}, collections.deque([("", tree, 0)])
    while queue:
        start, here, depth = queue.popleft()
        if depth > MAX_DEPTH:
            raise UserError(f"{path} nests more than {MAX_DEPTH} dictionaries; save the weights alone, as safetensors.")
        for key, value in here.items():
            name = f"{start}{key}"
            if isinstance(value, torch.Tensor):
                yield name, value.detach()
            elif isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                queue.append((f"{name}.", value, depth + 1))


def _refuse(problem: str) -> np.ndarray:
    raise UserError(problem)


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
    with needed(f"reading {path}, a file of PyTorch's,", "torch"):
        import torch
    with open(path, "rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"  # the format before PyTorch 1.6 cannot be mapped
    try:
        with torch.serialization.safe_globals([(_Beside, name) for name in BESIDE]):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:  # PyTorch raises OSError, KeyError, RuntimeError ... for damaged files
        problem = str(e).strip() or type(e).__name__
    if "TorchScript" in problem:
        raise UserError(
            f"{path} is a TorchScript program, not weights, and running it would run code; save its state_dict() as "
            "safetensors, or of OpenAI's CLIP take hf://openai/clip-vit-base-patch32 and its like."
        )
    if found := re.search(r"GLOBAL ([\w.]+)", problem):
        raise UserError(
            f"{path} holds more than tensors ({found[1]}); it was not opened, because unpickling runs code; where you "
            "trust it, load it in PyTorch and save its weights as safetensors."
        )
    reason = (
        "its pickle is no state dictionary" if re.search("eights.only", problem) else problem.partition("\n")[0][:120]
    )
    raise UserError(f"{path} cannot be read as a PyTorch file ({reason}); it is damaged or cut short: get it again.")


def _problem(tensor: Any) -> str | None:
    """What keeps a tensor from being read, None for nothing."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or kind not in (*DTYPES, "bfloat16"):
        return f"is {kind} and {tensor.layout} on {tensor.device}; only dense numbers can be read."
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"claims {tensor.nbytes:,} bytes, more than are stored (a bomb?)."
    return None


def _few(names: Any) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
