"""What the storage prints of what it gave up."""

import errno
import logging
import sys
import types

import pytest

from vit_jax.checkpoint import noise, read_item
from vit_jax.types import UserError


def test_what_the_storage_prints_of_what_it_gave_up_is_kept_off_and_nothing_else(tmp_path, monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(args.exc_value))
    for _ in range(2):
        noise.hush()
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("another")
    for error in (closed, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert shown == [other]
    logger, text = logging.getLogger("asyncio"), "Future exception was never retrieved"
    with caplog.at_level(logging.ERROR):
        logger.error(text, exc_info=OSError(errno.ENOSPC, "No space left on device"))
        logger.error(text, exc_info=ValueError("Input/output error [os_error_code='5']"))  # of tensorstore
        assert not caplog.records
        logger.error(text, exc_info=OSError(errno.EIO, "of somebody else"))
        logger.error("Task was destroyed but it is pending!")
    assert len(caplog.records) == 2
    assert logger.filters.count(noise._heard) == 1


def test_reading_keeps_it_off_too(run, monkeypatch):
    """Of evaluate, say, which writes no checkpoints."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(args.exc_value))
    with pytest.raises(UserError):
        read_item(run / "checkpoints" / "9", "meta")
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    assert not shown
