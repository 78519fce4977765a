"""Runs of the tests: on one device, and what several of them would trace and compile they share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from vit_jax.config import Duration
from vit_jax.train import loop, setup

EPOCH = Duration(1, "epochs")
UNLIKE = dict(
    init=None, resume_from=None, patience=None, keep=2, plots=False, log_every=None, eval_every=EPOCH,
    checkpoint_every=EPOCH,
)  # fmt: skip
"""Keys that nothing of a setup is built of."""

_built = functools.cache(setup.build)


def build(config: Any) -> setup.Setup:
    """``setup.build``; of data that no test changes, equal programs are the same."""
    if str(config.data.path).partition(":")[0] not in ("fake", "digits", "digits_pairs"):
        return setup.build(config)
    return dataclasses.replace(_built(dataclasses.replace(config, **UNLIKE)), config=config)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The loop sees one device."""
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda *_: devices[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        patch.setattr(loop, "build", build)
        yield
