"""A run small enough to train in a second."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

TINY = {
    "model": {
        "name": "vit",
        "patch": 4,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 32,
        "pool": "gap",
        "dropout": 0.1,
    },
    "data": {"path": "fake:80x8x4", "canvas": 8, "holdout": 16, "workers": 1},
    "augment": {"size": 8, "train": ["flip"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "mesh": {"replica": 1, "fsdp": 1, "tensor": 1},
    "batch_size": 16,
    "duration": 10,
    "log_every": 1,
    "eval_every": 7,
    "checkpoint_every": 4,
    "ema": 0.9,
    "plots": False,
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """``tiny(batch_size=8, optim={"lr": 1.0})``: the tiny run's plain configuration with keys replaced."""

    def make(**changes: Any) -> dict[str, Any]:
        raw = copy.deepcopy(TINY)
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
        return raw

    return make


@pytest.fixture(scope="session")
def one_device() -> Callable[..., Any]:
    """Builds a run on the first ``n`` devices; equal configurations share it, and with it what was traced."""
    from vit_jax.config import parse
    from vit_jax.train.config import TrainConfig
    from vit_jax.train.setup import build

    devices = jax.devices()

    @functools.cache
    def built(text: str, n: int) -> Any:
        return build(parse(TrainConfig, json.loads(text)), devices[:n])

    return lambda raw, n=1: built(json.dumps(raw), n)


@pytest.fixture(scope="session")
def alone() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """``with alone():`` the loop sees one device."""

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            devices = jax.devices()
            patch.setattr(jax, "devices", lambda *_: devices[:1])
            patch.setattr(jax, "device_count", lambda *_: 1)
            yield

    return first


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder that does not exist yet."""
    return tmp_path / "run"
