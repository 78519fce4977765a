"""Strict rules for every test: 8 fake CPU devices, no implicit dtype or rank promotion, warnings are errors."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Eight devices meet in threads of few cores: on a busy machine later than 40 s, after which XLA ends the process.
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import matplotlib
import numpy as np
import pytest
from jax.experimental import topologies

matplotlib.use("Agg")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # tiny programs: compiling them is nearly all of the time


_LIBRARIES: list[Any] = []  # PyTorch forgets operators with the object that declared them


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for module in (
        "flax",
        "orbax",
        "tensorstore",
        "grain",
        "tensorflow_datasets",
        "google",
        "etils",
        "jupyter_client",
    ):
        config.addinivalue_line("filterwarnings", f"default::DeprecationWarning:{module}")


MARKED = {**dict.fromkeys(("torch", "timm", "transformers", "open_clip"), "peer"), "tpu_chips": "tpu"}
"""Fixture -> the marker of every test that asks for it, also through another fixture."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker in {MARKED[name] for name in getattr(item, "fixturenames", ()) if name in MARKED}:
            item.add_marker(marker)
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded NumPy randomness."""
    return np.random.default_rng(0)


@pytest.fixture
def tpu_chips(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Devices of a TPU topology to compile for, "v5e:2x2" for instance: takes the package ``libtpu``, and no TPU."""
    pytest.importorskip("libtpu")
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    return lambda topology: topologies.get_topology_desc(topology, platform="tpu").devices


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, one thread."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def timm(torch: Any) -> Any:
    """timm."""
    return _peer("timm")


@pytest.fixture(scope="session")
def transformers(torch: Any) -> Any:
    """Hugging Face transformers."""
    return _peer("transformers")


@pytest.fixture(scope="session")
def open_clip(torch: Any) -> Any:
    """open_clip."""
    return _peer("open_clip")


def _peer(name: str) -> Any:
    """Imports a package that imports torchvision.

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
        except ModuleNotFoundError as e:
            pytest.skip(str(e))
        except RuntimeError as e:
            missing = re.search(r"operator (torchvision)::(\w+) does not exist", str(e))
            if not missing:
                raise
            _LIBRARIES.append(torch.library.Library(missing[1], "FRAGMENT"))
            _LIBRARIES[-1].define(f"{missing[2]}() -> ()")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    raise AssertionError("torchvision cannot be imported")
