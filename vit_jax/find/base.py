"""A run whose step is tried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_jax import config as configs
from vit_jax.train import inherit, setup
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.types import UsageError


def resolved(config: str | Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain configuration, with what it takes over from other weights.

    Raises:
      UsageError: it goes on from a run, and what is found holds for a start.
    """
    plain = configs.load(config) if isinstance(config, str) else configs.plain(config)
    raw = inherit.resolved(configs.change(plain, changes.items()))
    if raw.get("resume_from"):
        raise UsageError("resume_from goes on in the middle of a schedule; name what to start from with init instead.")
    return raw


def built(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Setup:
    """The run of a plain configuration with ``changes``."""
    return setup.build(inherit.with_tokenizer(configs.parse(TrainConfig, configs.change(raw, changes.items()))))
