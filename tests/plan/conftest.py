"""A run small enough to compile in a second."""

import copy

import pytest

TINY = {
    "model": {"name": "vit", "patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "pool": "gap"},
    "data": {"path": "fake:80x8x4", "canvas": 8, "holdout": 16},
    "augment": {"size": 8, "train": ["flip"]},
    "optim": {"lr": 0.003, "warmup": 2},
    "batch_size": 16,
    "duration": 10,
    "ema": 0.9,
}


@pytest.fixture(scope="session")
def tiny():
    """``tiny(batch_size=8, optim={"lr": 1.0})``: the tiny run's plain configuration with keys replaced."""

    def make(**changes):
        raw = copy.deepcopy(TINY)
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
        return raw

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Plans are kept for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
