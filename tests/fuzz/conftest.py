"""One process that runs the command lines of a worker's fuzzing tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import harness


@pytest.fixture(scope="session")
def server() -> Iterator[harness.Server]:
    """Ends with the session."""
    found = harness.Server()
    yield found
    found.close()
