"""Strict rules for every test: 8 fake CPU devices, no implicit dtype or rank promotion, warnings are errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # tiny programs: compiling them is nearly all of the time


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded NumPy randomness."""
    return np.random.default_rng(0)
