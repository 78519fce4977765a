"""Imports of packages that import torchvision."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from typing import Any

_LIBRARIES: list[Any] = []  # PyTorch forgets operators with the object that declared them


def imported(name: str) -> Any:
    """The package.

    Beside a PyTorch for the CPU alone torchvision comes without its compiled half; models need none of it, but its
    Python half refuses to be imported before the operators' names are declared.
    """
    import torch

    for _ in range(20):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module("torchvision")
                return importlib.import_module(name)
        except RuntimeError as e:
            missing = re.search(r"operator (torchvision)::(\w+) does not exist", str(e))
            if not missing:
                raise
            _LIBRARIES.append(torch.library.Library(missing[1], "FRAGMENT"))
            _LIBRARIES[-1].define(f"{missing[2]}() -> ()")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    raise AssertionError("torchvision cannot be imported")
