"""The journeys of the docs: every command of a page, one after the other, and what a user then has.

A page of ``docs/journeys`` has a function here, which looks at the folder that its commands were run in.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests import documentation


@pytest.fixture(scope="module", params=documentation.JOURNEYS, ids=lambda p: p.stem)
def journey(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """A page's name and the folder in which all of it was run."""
    place = tmp_path_factory.mktemp(request.param.stem)
    with documentation.working(place):
        documentation.run(request.param, place)
    return request.param.stem, place


def test_a_journey_ends_where_it_says(journey):
    page, place = journey
    CHECKS[page](place)


CHECKS: dict[str, Callable[[pathlib.Path], None]] = {}
"""Page -> what has to be there afterwards."""


def test_every_journey_is_checked():
    assert {page.stem for page in documentation.JOURNEYS} == set(CHECKS)
