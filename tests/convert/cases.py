"""Which configurations of a family are compared every time."""

import pytest


def rest_slow(cases, *fast):
    """The names of ``cases`` for ``parametrize``, all but ``fast`` of them slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in cases]
